// Experts that do not fit: what a cache of some experts a layer would hit and miss, and its price.

function render({ model, el }) {
  const ui = start(model, el), { now } = ui;
  const { tokens, answer, n_layers: L, n_experts: E, n_active: A, expert_bytes: size, links, published: big, shuffled } = now;
  const away = numbers(ui, "away", Uint8Array), T = tokens.length, N = E + 1 - A, begin = answer - now.first; // slots from A to E
  // Of each layer, the share of lookups that find their expert with A, A + 1, ... E slots.
  const rates = range(L).map((l) => {
    const counted = away.subarray((l * T + begin) * A, (l + 1) * T * A);
    return range(N).map((i) => counted.reduce((sum, d) => sum + (d < A + i), 0) / counted.length);
  });
  const all = range(N).map((i) => rates.reduce((sum, row) => sum + row[i], 0) / L);
  const same = big.n_experts === E && big.n_active === A; // then its rates belong in the same drawing

  const index = () => now.slots - A;
  const fetched = cached(() => now.slots, () => Float32Array.from({ length: L * T }, (_, i) =>
    away.subarray(i * A, (i + 1) * A).reduce((sum, d) => sum + (d >= now.slots), 0)));
  const everywhere = (t) => range(L).reduce((sum, l) => sum + fetched()[l * T + t], 0);
  const moved = (rate, of = now) => of.n_layers * of.n_active * (1 - rate) * of.expert_bytes;
  const speed = (bytes, gb) => (bytes > 0.5 ? (gb * 1e9) / bytes : Infinity);
  const told = (n) => (n === Infinity ? "no limit" : `${n < 100 ? n.toFixed(1) : count(Math.round(n))} tokens/s`);
  const weight = (n) => (n < 1e6 ? `${(n / 1000).toFixed(1)} kB` : bytes(n).split(" = ")[0]);

  slider(ui, "slots", "Slots", E, (v) => `${v} of ${E} experts a layer`, { min: A });
  choice(ui, "link", "Link", links, ([name]) => name);
  slider(ui, "layer", "Layer", L - 1);
  tokenSlider(ui);

  const map = { ...grid(L, N, Math.max(13, Math.floor(150 / L))), from: A };
  const chart = { x: 40, y: 6, height: Math.max(150, map.height), columns: N, from: A, end: 1 };
  plot(ui, {
    half: true,
    area: chart,
    caption: () => "Hit rate by slots a layer",
    label: () => big.rates.filter(([n]) => n >= A && n <= E).map(([n]) => `${n}: ${percent(all[n - A])}, shuffled ${percent(shuffled[n - A])}`).join("; "),
    draw(pen) {
      const top = chart.y + chart.height - 58, right = chart.x + chart.width;
      const lines = [["this run", "accent"], [`layer ${now.layer}`, "fg", [1, 3]], ["tokens shuffled", "muted", [5, 4]]];
      pen.levels();
      [all, rates[now.layer], shuffled].forEach((row, k) => pen.curve((i) => row[i], ...lines[k].slice(1)));
      pen.legend(lines, top);
      pen.circle(...pen.spot(index(), all[index()]), 4.5, "accent", "fg");
      if (!same) return;
      for (const [n, rate] of big.rates) pen.circle(...pen.spot(n - A, rate), 3.5, "bg", "fg");
      pen.circle(right - 16, top + 45, 3.5, "bg", "fg");
      pen.words("gpt-oss-20b, published", right - 34, top + 45, "fg", "right");
    },
    pick: (_, i) => ui.set({ slots: A + i }),
  });
  const grids = rates.flat();
  plot(ui, {
    half: true,
    area: map,
    ramp: () => ["0%", "100%"],
    caption: () => "Hit rate, layer by slots",
    label: () => `With ${now.slots} slots: ${rates.map((row) => percent(row[index()])).join(", ")}`,
    draw: (pen) => pen.heat(grids, String, now.layer, index()),
    pick: (layer, i) => ui.set({ layer, slots: A + i }),
  });
  const time = ui.grid(L), parts = cached(() => now.slots, () => fetched().map((n) => n / A));
  plot(ui, {
    area: time,
    ramp: () => ["0", `${A} experts`],
    caption: () => `Experts fetched with ${now.slots} slots, layer by position${begin ? `; the answer begins at ${answer}` : ""}`,
    label: () => `${L} layers for ${T} tokens`,
    draw(pen) {
      pen.heat(parts(), String, now.layer, ui.index());
      if (begin) pen.fill("fg", time.x + (begin / T) * time.width - 1, 0, 2, time.height + 8);
    },
    pick: (layer, i) => ui.pick(i, { layer }),
  });

  const sum = (name, slots, rate, of) => {
    const load = moved(rate, of), held = slots * of.n_layers * of.expert_bytes;
    return h("p", {}, h("b", {}, name), `: ${of.n_layers} layers × ${of.n_active} lookups × ${percent(1 - rate)} missed × ${count(of.expert_bytes)} bytes = ${weight(load)} a token. ` +
      `${Object.values(links).map(([link, gb]) => `${link}: ${told(speed(load, gb))}`).join("; ")}. Held: ${weight(held)} of ${weight((held / slots) * of.n_experts)}.`);
  };
  panel(ui, () => {
    const best = big.rates.filter(([n]) => n <= now.slots).pop() ?? big.rates[0];
    return [sum(`This run, ${now.slots} slots`, now.slots, all[index()], now),
      sum(`gpt-oss-20b, ${best[0]} slots, published hit rate`, ...best, big)];
  });
  strip(ui, (t) => everywhere(t) / (L * A));

  const status = () => {
    const { layer, slots } = now, i = ui.index(), rate = all[index()], load = moved(rate), [link, gb] = links[now.link];
    return [`${slots} of ${E} experts a layer: ${percent(rate)} of the lookups hit, ${percent(shuffled[index()])} with the tokens shuffled. A token moves ${(load / size).toFixed(1)} experts, ` +
      `${weight(load)}; over ${link}: ${load > 0.5 ? "at most " : ""}${told(speed(load, gb))}. Layer ${layer}, token ${ui.token()} `, quoted(tokens[i]),
      `: ${fetched()[layer * T + i]} of ${A} experts fetched, ${everywhere(i)} in all layers.`];
  };
  const tables = () => {
    const known = Object.fromEntries(big.rates), paths = Object.values(links), limit = (n) => (n === Infinity ? "" : n.toFixed(1));
    return [
      table("By slots", ["slots", "hit rate", "tokens shuffled", "gpt-oss-20b, published", "bytes a token", ...paths.map(([name]) => `tokens/s, ${name}`), ...range(L).map((l) => `layer ${l}`)], N, (i) =>
        [A + i, all[i].toFixed(4), shuffled[i].toFixed(4), (same && known[A + i]) || "", Math.round(moved(all[i])),
          ...paths.map(([, gb]) => limit(speed(moved(all[i]), gb))), ...rates.map((row) => row[i].toFixed(4))]),
      table(`Experts fetched with ${now.slots} slots`, ["position", "token", `layer ${now.layer}`, "all layers", "counts"], T, (t) =>
        [ui.token(t), { token: tokens[t] }, fetched()[now.layer * T + t], everywhere(t), t < begin ? "no" : "yes"]),
    ];
  };
  return finish(ui, { status, tables, note:
    "Each layer keeps the experts it used last. Only moving experts is counted: computing and reading memory come on top, and what a program fetches ahead is not modeled. " +
    `${begin ? "The prompt is read in one pass; it only fills the cache. " : ""}Published: LRU over 25 answers of gpt-oss-20b to benchmark questions, from the expert lists of AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting (Apache-2.0); ` +
    `its control with shuffled tokens: ${big.shuffled.map(([n, rate]) => `${percent(rate)} at ${n} slots`).join(", ")}.` });
}

export default { render };
