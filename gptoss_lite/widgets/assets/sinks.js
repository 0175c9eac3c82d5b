// Attention sinks: sink mass = sigmoid(sink + shift - lse), computed here when the sinks move.

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

function render({ model, el }) {
  const ui = start(model, el), { now } = ui, { tokens, windows, stride, n_heads: H, bits } = now;
  const L = windows.length, T = tokens.length;
  // sink - lse of every row, from the codes between the row's bounds.
  const bounds = numbers(ui, "bounds", Float32Array), sink = numbers(ui, "sink", Float32Array);
  const margin = Float32Array.from(numbers(ui, "lse", bits === 8 ? Uint8Array : Uint16Array), (code, k) => {
    const row = Math.floor(k / T), low = bounds[2 * row], high = bounds[2 * row + 1];
    return sink[row] - low - (code * (high - low)) / (2 ** bits - 1);
  });
  const masses = cached(() => [now.sinks_on, now.shift], () => margin.map((m) => (now.sinks_on ? sigmoid(m + now.shift) : 0)));
  const means = cached(() => [now.sinks_on, now.shift], () =>
    Float32Array.from({ length: L * H }, (_, row) => masses().subarray(row * T, (row + 1) * T).reduce((a, b) => a + b) / T));

  const at = (i) => (now.layer * H + now.head) * T + i;
  const mass = (i) => masses()[at(i)], learned = (i) => sigmoid(margin[at(i)]);
  const ofLayer = () => masses().subarray(now.layer * H * T, (now.layer + 1) * H * T);
  const kind = (layer) => (windows[layer] === null ? "full" : `sliding, ${windows[layer]} keys`);
  const mark = (layer) => `${layer} ${windows[layer] === null ? "F" : "S"}`;

  slider(ui, "layer", "Layer", L - 1, (v) => `${v}, ${kind(v)}`);
  slider(ui, "head", "Head", H - 1);
  tokenSlider(ui);
  slider(ui, "shift", "Shift all sinks", 6, (v) => (v ? (v > 0 ? "+" : "") + v.toFixed(1) : "0, as learned"), { min: -6, step: 0.1 });
  checkbox(ui, "sinks_on", "Sinks on");

  const overview = grid(L, H, 26), meanEnd = () => scaleEnd(means());
  plot(ui, {
    half: true,
    area: overview,
    ramp: () => ["0%", percent(meanEnd())],
    caption: () => "Mean sink mass, layer by head",
    label() {
      const top = means().indexOf(most(means()));
      return `Most of ${L} layers by ${H} heads in layer ${Math.floor(top / H)} head ${top % H}, ${percent(means()[top])}`;
    },
    draw(pen) {
      const { x, y, width, height } = overview, wide = width / H, tall = height / L, end = meanEnd();
      pen.heat(means().map((v) => v / end), mark);
      if (wide > 26 && tall > 13)
        means().forEach((v, k) => pen.words(Math.round(100 * v), x + ((k % H) + 0.5) * wide, y + (Math.floor(k / H) + 0.5) * tall, v > end / 2 ? "#000" : "#fff", "center"));
      pen.frame(x + now.head * wide, y + now.layer * tall, wide, tall);
    },
    pick: (layer, head) => ui.set({ layer, head }),
  });
  const line = { x: 40, y: 6, height: Math.max(110, overview.height), columns: T, stride };
  plot(ui, {
    half: true,
    area: line,
    caption: () => `Layer ${now.layer}, head ${now.head}: sink mass by position`,
    label: () => `${percent(mass(0))} at the first token, ${percent(mass(T - 1))} at the last`,
    draw(pen) {
      const moved = now.shift || !now.sinks_on, window = windows[now.layer];
      line.end = scaleEnd(range(T).flatMap((i) => [mass(i), moved ? learned(i) : 0]));
      pen.levels();
      const full = (window - 1) / stride; // where a window is full for the first time
      if (window !== null && full <= T - 1) {
        const left = full < T / 2, [x] = pen.spot(full, 0), high = mass(Math.floor(full)) > line.end / 2;
        pen.line([[x, line.y], [x, line.y + line.height]], "muted", [2, 3], 1);
        pen.words("window full", x + (left ? 5 : -5), line.y + (high ? 0.92 : 0.08) * line.height, "muted", left ? "left" : "right");
      }
      if (moved) pen.curve(learned, "muted", [4, 3]);
      pen.curve(mass, "accent");
      pen.circle(...pen.spot(ui.index(), mass(ui.index())), 4.5, "accent", "fg");
    },
    pick: (_, i) => ui.pick(i),
  });
  // The first tokens have few keys to read; their masses would leave the rest dark.
  const layerEnd = cached(() => [now.layer, now.sinks_on, now.shift], () => scaleEnd(ofLayer(), 0.95));
  plot(ui, {
    area: ui.grid(H),
    ramp: () => ["0%", percent(layerEnd()) + (layerEnd() < 1 ? " or more" : "")],
    caption: () => `Layer ${now.layer} (${kind(now.layer)}): sink mass, head by position`,
    label: () => `${H} heads by ${T} positions`,
    draw: (pen) => pen.heat(ofLayer().map((v) => v / layerEnd()), String, now.head, ui.index()),
    pick: (head, i) => ui.pick(i, { head }),
  });
  strip(ui, (i) => mass(i) / layerEnd());

  const status = () => {
    const i = ui.index(), p = mass(i), n = Math.min(ui.token() + 1, windows[now.layer] ?? Infinity);
    const [keys, share] = n === 1 ? ["the one key in sight", "takes"] : [`the ${n} keys in sight`, "share"];
    const where = [`Layer ${now.layer} (${kind(now.layer)}), head ${now.head}, token ${ui.token()} `, quoted(tokens[i]), ": "];
    if (!now.sinks_on) return [...where, `sinks off, ${keys} ${share} everything. The learned sink took ${percent(learned(i))}.`];
    const grow = p > 0.99 ? "over 100" : (1 / (1 - p)).toFixed(p > 0.9 ? 0 : 1);
    return [...where, `the sink takes ${percent(p)}, ${keys} ${share} ${percent(1 - p)}. Without it each weight would be ${grow} times as large.`];
  };
  const heads = range(H).map((head) => `head ${head}`);
  const tables = () => [
    table("Mean sink mass", ["layer", ...heads], L, (l) => [mark(l), ...heads.map((_, head) => means()[l * H + head].toFixed(3))]),
    table(`Sink mass in layer ${now.layer}`, ["position", "token", ...heads], T,
      (i) => [ui.token(i), { token: tokens[i] }, ...heads.map((_, head) => ofLayer()[head * T + i].toFixed(3))]),
  ];
  return finish(ui, { status, tables, note: "S: sliding window, F: full attention. Sink mass = sigmoid(sink + shift − lse), computed in this page from the recorded " +
    `log-sum-exp of the scores, at most ${now.error} off. Each head moves by itself: the layers before it are held fixed, though in the ` +
    `model a shift would change what they hand on.${stride > 1 ? ` Only one position in ${stride} is kept.` : ""}` });
}

export default { render };
