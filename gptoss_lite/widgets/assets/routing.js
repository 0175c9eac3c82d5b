// Expert routing: who works for which token, how evenly, and what is kept from the token before.

const COLORS = {
  weight: "weight of the first expert",
  kept: "experts kept from the token before",
  expert: "weight of the followed expert",
};

function render({ model, el }) {
  const [tokens, L, E, A] = ["tokens", "n_layers", "n_experts", "n_active"].map((name) => model.get(name));
  const ids = numbers(model, "ids", Uint8Array), weights = numbers(model, "weights", Uint8Array);
  const T = tokens.length, even = A / E, kept = keptCounts(ids, L, T, A), loads = loadShares(ids, L, T, A, E);
  const low = 1 / A, top = weights.reduce((a, b) => Math.max(a, b)) / 255; // of the color scales

  const at = () => ({ layer: model.get("layer"), token: model.get("token"), expert: model.get("expert"), color: model.get("color") });
  const work = (l, t) => range(A).map((k) => (l * T + t) * A + k).map((k) => [ids[k], weights[k] / 255]);
  const load = (l, e) => loads[l * E + e];
  const times = (l, e) => `${(load(l, e) / even).toFixed(1)} times an even split`;
  // What the overview shows, from 0 to 1.
  const shown = () => {
    const { color, expert } = at();
    if (color === "weight") return (l, t) => (weights[(l * T + t) * A] / 255 - low) / Math.max(top - low, 0.01);
    if (color === "kept") return (l, t) => (t ? kept[l * T + t] / A : undefined);
    return (l, t) => {
      const first = (l * T + t) * A, k = ids.subarray(first, first + A).indexOf(expert);
      return k < 0 ? undefined : weights[first + k] / 255 / top;
    };
  };
  const title = () => COLORS[at().color] + (at().color === "expert" ? `, ${at().expert}` : "");

  const status = () => {
    const { layer, token, expert } = at(), same = kept[layer * T + token];
    const list = work(layer, token).map(([e, w]) => `expert ${e} (${percent(w)})`).join(", ");
    return [`Layer ${layer}, token ${token} `, quoted(tokens[token]), `: ${list}.${token ? ` ${same} of ${A} kept from the token before.` : ""}` +
      ` Expert ${expert} works for ${percent(load(layer, expert))} of the tokens in this layer, ${times(layer, expert)}.`];
  };
  const tables = () => {
    const { layer } = at(), names = range(A).flatMap((k) => [`expert ${k + 1}`, "weight"]);
    return [
      { caption: `Load in layer ${layer}`, rows: [["expert", "share of the tokens", "times an even split"],
        ...range(E).map((e) => [e, load(layer, e).toFixed(3), (load(layer, e) / even).toFixed(2)])] },
      { caption: `Experts in layer ${layer}`, rows: [["position", "token", ...names, "kept"],
        ...tokens.map((token, t) => [t, { token }, ...work(layer, t).flatMap(([e, w]) => [e, w.toFixed(3)]), t ? kept[layer * T + t] : ""])] },
    ];
  };

  const ui = start(model, el, { traits: ["layer", "token", "expert", "color"], status, tables });
  slider(ui, "layer", "Layer", 0, L - 1, 1, String);
  slider(ui, "token", "Token", 0, T - 1, 1, (v) => `${v}, ${visible(tokens[v])}`);
  slider(ui, "expert", "Follow expert", 0, E - 1, 1, String);
  choice(ui, "color", "Overview shows", COLORS);

  const overview = grid(L, T), map = { ...grid(E, T), right: 104 };
  plot(ui, {
    area: overview,
    ramp: () => ({ weight: [percent(low), percent(top)], kept: [0, A], expert: ["0%", percent(top)] })[at().color],
    caption: () => `Layer by position: ${title()}`,
    label: () => `${L} layers by ${T} tokens, colored by the ${title()}`,
    draw(g) {
      heat(ui, g, overview, shown(), String, at().layer, at().token);
    },
    pick(x, y) {
      const [layer, token] = cellAt(overview, x, y);
      ui.set({ layer, token });
    },
  });
  plot(ui, {
    area: map,
    ramp: () => ["0%", percent(top)],
    caption: () => `Layer ${at().layer}: expert by position, and each expert's load; line: an even split, ${(100 * even).toFixed(1)}%`,
    label() {
      const { layer } = at(), shares = range(E).map((e) => load(layer, e)), busy = shares.indexOf(Math.max(...shares));
      return `${E} experts by ${T} tokens in layer ${layer}; busiest is expert ${busy} with ${percent(shares[busy])} of the tokens, ` +
        `${times(layer, busy)}; ${shares.filter((v) => !v).length} never used`;
    },
    draw(g) {
      const { layer, token, expert } = at(), field = new Float32Array(E * T);
      for (let t = 0, k = layer * T * A; t < T; t++)
        for (let a = 0; a < A; a++, k++) field[ids[k] * T + t] = (weights[k] / 255 + 1e-6) / top;
      heat(ui, g, map, (e, t) => field[e * T + t] || undefined, String, expert, token);
      bars(ui, g, map, range(E).map((e) => load(layer, e)), even, expert);
    },
    pick(x, y) {
      const [expert, token] = cellAt(map, x, y);
      ui.set(x > map.x + map.width ? { expert } : { expert, token });
    },
  });
  const values = () => ((value) => tokens.map((_, t) => value(at().layer, t) ?? 0))(shown());
  strip(ui, tokens, values, () => at().token, (token) => ui.set({ token }));
  const dropped = model.get("dropped");
  return finish(ui,
    `Empty cells: the expert did not work. Under the text the bars show the same as the overview, for this layer. ` +
    `Weights are at most 0.002 off.${dropped ? ` The last ${dropped} tokens of the recording are not shown.` : ""}`);
}

function keptCounts(ids, L, T, A) {
  return Uint8Array.from({ length: L * T }, (_, i) => {
    const before = i % T ? ids.subarray((i - 1) * A, i * A) : [];
    return ids.subarray(i * A, (i + 1) * A).filter((e) => before.includes(e)).length;
  });
}

function loadShares(ids, L, T, A, E) {
  const out = new Float32Array(L * E);
  ids.forEach((e, k) => (out[Math.floor(k / (T * A)) * E + e] += 1 / T));
  return out;
}

// Bars on the rows of the map, with the even split as a line.
function bars(ui, g, { x, y, width, height, right, size }, shares, even, selected) {
  const left = x + width + 10, most = Math.max(...shares, even), unit = (right - 10) / most;
  shares.forEach((v, e) => {
    g.fillStyle = e === selected ? ui.fg : ui.accent;
    g.fillRect(left, y + e * size, v * unit, Math.max(1, size - 1));
  });
  g.fillStyle = g.strokeStyle = ui.muted;
  g.lineWidth = 1;
  g.setLineDash([3, 2]);
  g.strokeRect(left + even * unit, y, 0, height);
  g.setLineDash([]);
  g.textAlign = "right";
  g.fillText(`up to ${percent(most)}`, x + width + right, y + height + 10);
}

export default { render };
