// Expert routing: who works for which token, how evenly, and what is kept from the token before.

const COLORS = {
  weight: "weight of the first expert",
  kept: "experts kept from the token before",
  expert: "weight of the followed expert",
};

function render({ model, el }) {
  const ui = start(model, el), { now } = ui, { tokens, n_layers: L, n_experts: E, n_active: A } = now;
  const ids = numbers(ui, "ids", Uint8Array), weights = Float32Array.from(numbers(ui, "weights", Uint8Array), (w) => w / 255);
  const T = tokens.length, even = A / E, low = 1 / A, top = most(weights); // of the color scales
  // Cells count through layers and tokens, [L T].
  const experts = (cell) => ids.subarray(cell * A, (cell + 1) * A);
  const kept = range(L * T).map((cell) => {
    const before = cell % T ? experts(cell - 1) : [];
    return experts(cell).filter((e) => before.includes(e)).length;
  });
  const loads = new Float32Array(L * E);
  ids.forEach((e, k) => (loads[Math.floor(k / (T * A)) * E + e] += 1 / T));

  const work = (cell) => Array.from(experts(cell), (e, k) => [e, weights[cell * A + k]]);
  const load = (e) => loads[now.layer * E + e], times = (e) => `${(load(e) / even).toFixed(1)} times an even split`;
  const title = () => COLORS[now.color] + (now.color === "expert" ? `, ${now.expert}` : "");
  const overview = cached(() => [now.color, now.color === "expert" && now.expert], () => {
    const value = {
      weight: (cell) => (weights[cell * A] - low) / Math.max(top - low, 0.01),
      kept: (cell) => (cell % T ? kept[cell] / A : NaN),
      expert: (cell) => (work(cell).find(([e]) => e === now.expert)?.[1] ?? NaN) / top,
    }[now.color];
    return Float32Array.from(kept, (_, cell) => value(cell));
  });
  const field = cached(() => now.layer, () => {
    const values = new Float32Array(E * T).fill(NaN);
    for (let k = now.layer * T * A, i = 0; i < T * A; i++, k++) values[ids[k] * T + Math.floor(i / A)] = weights[k] / top;
    return values;
  });

  slider(ui, "layer", "Layer", L - 1);
  tokenSlider(ui);
  slider(ui, "expert", "Follow expert", E - 1);
  choice(ui, "color", "Overview shows", COLORS);
  plot(ui, {
    area: ui.grid(L),
    ramp: () => ({ weight: [percent(low), percent(top)], kept: [0, A], expert: ["0%", percent(top)] })[now.color],
    caption: () => `Layer by position: ${title()}`,
    label: () => `${L} layers by ${T} tokens`,
    draw: (pen) => pen.heat(overview(), String, now.layer, ui.index()),
    pick: (layer, i) => ui.pick(i, { layer }),
  });
  const map = { ...ui.grid(E), right: 104 };
  plot(ui, {
    area: map,
    ramp: () => ["0%", percent(top)],
    caption: () => `Layer ${now.layer}: expert by position, and each expert's load; line: an even split, ${(100 * even).toFixed(1)}%`,
    label() {
      const shares = range(E).map(load), busy = shares.indexOf(most(shares));
      return `${E} experts by ${T} tokens; busiest is expert ${busy} with ${percent(shares[busy])} of the tokens, ${times(busy)}; ` +
        `${shares.filter((v) => !v).length} never used`;
    },
    draw(pen) {
      pen.heat(field(), String, now.expert, ui.index());
      const { x, y, width, height, right } = map, tall = height / E, left = x + width + 10;
      const end = Math.max(most(range(E).map(load)), even), unit = (right - 10) / end;
      for (const e of range(E)) pen.fill(e === now.expert ? "fg" : "accent", left, y + e * tall, load(e) * unit, Math.max(1, tall - 1));
      pen.line([[left + even * unit, y], [left + even * unit, y + height]], "muted", [3, 2], 1);
      pen.words(`up to ${percent(end)}`, x + width + right, y + height + 10, "muted", "right");
    },
    pick: (expert, i, x) => (x > map.x + map.width ? ui.set({ expert }) : ui.pick(i, { expert })),
  });
  strip(ui, (t) => overview()[now.layer * T + t]);

  const status = () => {
    const { layer, expert } = now, i = ui.index(), cell = layer * T + i;
    const list = work(cell).map(([e, w]) => `expert ${e} (${percent(w)})`).join(", ");
    return [`Layer ${layer}, token ${ui.token()} `, quoted(tokens[i]), `: ${list}.${i ? ` ${kept[cell]} of ${A} kept from the token before.` : ""}` +
      ` Expert ${expert} works for ${percent(load(expert))} of the tokens in this layer, ${times(expert)}.`];
  };
  const tables = () => [
    table(`Load in layer ${now.layer}`, ["expert", "share of the tokens", "times an even split"], E,
      (e) => [e, load(e).toFixed(3), (load(e) / even).toFixed(2)]),
    table(`Experts in layer ${now.layer}`, ["position", "token", ...range(A).flatMap((k) => [`expert ${k + 1}`, "weight"]), "kept"], T, (t) => {
      const cell = now.layer * T + t;
      return [ui.token(t), { token: tokens[t] }, ...work(cell).flatMap(([e, w]) => [e, w.toFixed(3)]), t ? kept[cell] : ""];
    }),
  ];
  return finish(ui, { status, tables, note: "Empty cells: the expert did not work. Under the text the bars show the same as the overview, for this layer. Weights are at most 0.002 off." });
}

export default { render };
