// Attention sinks: sink mass = sigmoid(sink + shift - lse), computed here when the sinks move.

function render({ model, el }) {
  const [tokens, windows, stride, H] = ["tokens", "windows", "stride", "n_heads"].map((name) => model.get(name));
  const L = windows.length, T = tokens.length, margin = margins(model, L * H, T);
  const masses = new Float32Array(margin.length), means = new Float32Array(L * H);
  let shift; // what the masses were computed with; -Infinity: without sinks

  const at = () => {
    const layer = model.get("layer"), head = model.get("head"), row = layer * H + head;
    return { layer, head, row, i: Math.min(T - 1, Math.round(model.get("token") / stride)) };
  };
  const mass = (i) => masses[at().row * T + i];
  const learned = (i) => 1 / (1 + Math.exp(-margin[at().row * T + i]));
  const compute = () => {
    const now = model.get("sinks_on") ? model.get("shift") : -Infinity;
    if (now === shift) return;
    shift = now;
    means.fill(0);
    margin.forEach((m, k) => (means[Math.floor(k / T)] += masses[k] = 1 / (1 + Math.exp(-m - shift))));
    means.forEach((sum, row) => (means[row] = sum / T));
  };
  const kind = (layer) => (windows[layer] === null ? "full" : `sliding, ${windows[layer]} keys`);
  const mark = (layer) => `${layer} ${windows[layer] === null ? "F" : "S"}`;

  const status = () => {
    compute();
    const { layer, head, i } = at(), p = mass(i), n = Math.min(i * stride + 1, windows[layer] ?? Infinity);
    const [keys, share] = n === 1 ? ["the one key in sight", "takes"] : [`the ${n} keys in sight`, "share"];
    const where = [`Layer ${layer} (${kind(layer)}), head ${head}, token ${i * stride} `, quoted(tokens[i]), ": "];
    if (shift === -Infinity)
      return [...where, `sinks off, ${keys} ${share} everything. The learned sink took ${percent(learned(i))}.`];
    const grow = p > 0.99 ? "over 100" : (1 / (1 - p)).toFixed(p > 0.9 ? 0 : 1);
    return [...where, `the sink takes ${percent(p)}, ${keys} ${share} ${percent(1 - p)}. Without it each weight would be ${grow} times as large.`];
  };
  const tables = () => {
    const { layer } = at(), heads = range(H).map((head) => `head ${head}`);
    return [
      { caption: "Mean sink mass", rows: [["layer", ...heads],
        ...windows.map((_, l) => [mark(l), ...range(H).map((head) => means[l * H + head].toFixed(3))])] },
      { caption: `Sink mass in layer ${layer}`, rows: [["position", "token", ...heads],
        ...tokens.map((token, i) => [i * stride, { token }, ...range(H).map((head) => masses[(layer * H + head) * T + i].toFixed(3))])] },
    ];
  };

  const ui = start(model, el, { traits: ["layer", "head", "token", "shift", "sinks_on"], status, tables });
  slider(ui, "layer", "Layer", 0, L - 1, 1, (v) => `${v}, ${kind(v)}`);
  slider(ui, "head", "Head", 0, H - 1, 1, String);
  slider(ui, "token", "Token", 0, (T - 1) * stride, stride, (v) => `${v}, ${visible(tokens[at().i])}`);
  slider(ui, "shift", "Shift all sinks", -6, 6, 0.1, (v) => (v ? (v > 0 ? "+" : "") + v.toFixed(1) : "0, as learned"));
  checkbox(ui, "sinks_on", "Sinks on");

  const overview = grid(L, H, 1, 26), line = { x: 40, y: 6, height: Math.max(110, L * overview.size), columns: T, stride };
  const layerMap = grid(H, T, stride);
  const meanEnd = () => scaleEnd(means);
  // The first tokens have few keys to read; their masses would leave the rest dark.
  const layerEnd = () => scaleEnd(masses.subarray(at().layer * H * T, (at().layer + 1) * H * T), 0.95);
  plot(ui, {
    half: true,
    area: overview,
    ramp: () => ["0%", percent(meanEnd())],
    caption: () => "Mean sink mass, layer by head",
    label: () => {
      const top = means.indexOf(Math.max(...means));
      return `Mean sink mass of ${L} layers by ${H} heads; most in layer ${Math.floor(top / H)} head ${top % H}, ${percent(means[top])}`;
    },
    draw(g) {
      const { layer, head } = at(), { x, y, size, width } = overview, cell = width / H, end = meanEnd();
      heat(ui, g, overview, (l, k) => means[l * H + k] / end, mark);
      if (cell > 26 && size > 13)
        means.forEach((v, k) => {
          g.fillStyle = v > end / 2 ? "#000" : "#fff";
          g.fillText(Math.round(100 * v), x + ((k % H) + 0.5) * cell, y + (Math.floor(k / H) + 0.5) * size);
        });
      frame(g, x + head * cell, y + layer * size, cell, size);
    },
    pick(x, y) {
      const [layer, head] = cellAt(overview, x, y);
      ui.set({ layer, head });
    },
  });
  plot(ui, {
    half: true,
    area: line,
    caption: () => `Layer ${at().layer}, head ${at().head}: sink mass by position`,
    label: () => `Sink mass of this head by position: ${percent(mass(0))} at the first token, ${percent(mass(T - 1))} at the last`,
    draw(g) {
      const { layer, i } = at();
      line.end = scaleEnd(range(T).flatMap((k) => [mass(k), shift ? learned(k) : 0]));
      axes(ui, g, line, windows[layer], mass);
      if (shift) curve(g, line, learned, ui.muted, [4, 3]);
      curve(g, line, mass, ui.accent, []);
      dot(ui, g, line, i, mass(i));
    },
    pick: (x) => ui.set({ token: stride * cellAt({ ...line, rows: 1, size: 1 }, x, 0)[1] }),
  });
  plot(ui, {
    area: layerMap,
    ramp: () => ["0%", percent(layerEnd()) + (layerEnd() < 1 ? " or more" : "")],
    caption: () => `Layer ${at().layer} (${kind(at().layer)}): sink mass, head by position`,
    label: () => `Sink mass of ${H} heads by ${T} positions in layer ${at().layer}`,
    draw(g) {
      const { layer, head, i } = at(), end = layerEnd();
      heat(ui, g, layerMap, (k, c) => masses[(layer * H + k) * T + c] / end, String, head, i);
    },
    pick(x, y) {
      const [head, i] = cellAt(layerMap, x, y);
      ui.set({ head, token: i * stride });
    },
  });
  const shares = () => ((end) => range(T).map((i) => mass(i) / end))(layerEnd());
  strip(ui, tokens, shares, () => at().i, (i) => ui.set({ token: i * stride }));
  return finish(ui,
    "S: sliding window, F: full attention. Sink mass = sigmoid(sink + shift − lse), computed in this page from the recorded log-sum-exp of the scores, " +
    `at most ${model.get("error")} off. Each head moves by itself: the layers before it are held fixed, though in the ` +
    `model a shift would change what they hand on.${stride > 1 ? ` Only every ${stride}th position is kept.` : ""}`);
}

// sink - lse of every row, from the codes between the row's bounds.
function margins(model, rows, T) {
  const bits = model.get("bits"), codes = numbers(model, "lse", bits === 8 ? Uint8Array : Uint16Array);
  const bounds = numbers(model, "bounds", Float32Array), sink = numbers(model, "sink", Float32Array);
  return Float32Array.from(codes, (code, k) => {
    const row = Math.floor(k / T), low = bounds[2 * row], high = bounds[2 * row + 1];
    return sink[row] - low - (code * (high - low)) / (2 ** bits - 1);
  });
}

function axes(ui, g, area, window, value) {
  levels(ui, g, area);
  const full = window === null ? Infinity : (window - 1) / area.stride; // where a window is full for the first time
  if (full > area.columns - 1) return;
  const [x] = spot(area, full, 0), right = full < area.columns / 2;
  g.strokeStyle = ui.muted;
  g.setLineDash([2, 3]);
  g.strokeRect(x, area.y, 0, area.height);
  g.setLineDash([]);
  g.textAlign = right ? "left" : "right";
  g.fillText("window full", x + (right ? 5 : -5), area.y + (value(Math.floor(full)) > area.end / 2 ? 0.92 : 0.08) * area.height);
}

export default { render };
