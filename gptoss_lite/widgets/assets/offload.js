// Experts that do not fit: what a cache of some experts a layer would hit and miss, and its price.

function render({ model, el }) {
  const get = (name) => model.get(name);
  const [tokens, first, L, E, A, size, links, big] = ["tokens", "first", "n_layers", "n_experts", "n_active", "expert_bytes", "links", "published"].map(get);
  const away = numbers(model, "away", Uint8Array), T = tokens.length, N = E + 1 - A; // slots from A to E
  const rates = hitRates(away, L, T, A, E, first), all = range(N).map((i) => rates.reduce((sum, row) => sum + row[i], 0) / L);
  const same = big.n_experts === E && big.n_active === A; // then its rates belong in the same drawing
  const control = (i) => get("shuffled")[i];

  const at = () => ({ layer: get("layer"), token: get("token"), slots: get("slots"), i: get("slots") - A, link: links[get("link")] });
  const fetched = (l, t) => range(A).filter((k) => away[(l * T + t) * A + k] >= get("slots")).length;
  const everywhere = (t) => range(L).reduce((sum, l) => sum + fetched(l, t), 0);
  const moved = (rate, of = { n_layers: L, n_active: A, expert_bytes: size }) => of.n_layers * of.n_active * (1 - rate) * of.expert_bytes;
  const speed = (bytes, gb) => (bytes > 0.5 ? (gb * 1e9) / bytes : Infinity);
  const told = (n) => (n === Infinity ? "no limit" : `${n < 100 ? n.toFixed(1) : count(Math.round(n))} tokens/s`);
  const weight = (n) => (n < 1e6 ? `${(n / 1000).toFixed(1)} kB` : bytes(n).split(" = ")[0]);

  const status = () => {
    const { layer, token, slots, i, link } = at(), load = moved(all[i]);
    return [`${slots} of ${E} experts a layer: ${percent(all[i])} of the lookups hit, ${percent(control(i))} with the tokens shuffled. A token moves ${(load / size).toFixed(1)} experts, ` +
      `${weight(load)}; over ${link[0]}: ${load > 0.5 ? "at most " : ""}${told(speed(load, link[1]))}. Layer ${layer}, token ${token} `, quoted(tokens[token]),
      `: ${fetched(layer, token)} of ${A} experts fetched, ${everywhere(token)} in all layers.`];
  };
  const tables = () => {
    const { layer } = at(), known = Object.fromEntries(big.rates), names = Object.values(links).map(([name]) => `tokens/s, ${name}`);
    return [
      { caption: "By slots", rows: [["slots", "hit rate", "tokens shuffled", "gpt-oss-20b, published", "bytes a token", ...names, ...range(L).map((l) => `layer ${l}`)],
        ...range(N).map((i) => [A + i, all[i].toFixed(4), control(i).toFixed(4), same && A + i in known ? known[A + i] : "", Math.round(moved(all[i])),
          ...Object.values(links).map(([, gb]) => ((v) => (v === Infinity ? "" : v.toFixed(1)))(speed(moved(all[i]), gb))), ...rates.map((row) => row[i].toFixed(4))])] },
      { caption: `Experts fetched with ${get("slots")} slots`, rows: [["position", "token", `layer ${layer}`, "all layers", "counts"],
        ...tokens.map((token, t) => [t, { token }, fetched(layer, t), everywhere(t), t < first ? "no" : "yes"])] },
    ];
  };

  const ui = start(model, el, { traits: ["layer", "token", "slots", "link"], status, tables });
  slider(ui, "slots", "Slots", A, E, 1, (v) => `${v} of ${E} experts a layer`);
  choice(ui, "link", "Link", Object.fromEntries(Object.entries(links).map(([key, [name]]) => [key, name])));
  slider(ui, "layer", "Layer", 0, L - 1, 1, String);
  slider(ui, "token", "Token", 0, T - 1, 1, (v) => `${v}, ${visible(tokens[v])}`);

  const map = { ...grid(L, N, 1, Math.max(13, Math.floor(150 / L))), from: A };
  const chart = { x: 40, y: 6, height: Math.max(150, map.height), columns: N, stride: 1, from: A, end: 1 };
  const slotAt = (area, x) => A + cellAt({ ...area, rows: 1, size: 1 }, x, 0)[1];
  plot(ui, {
    half: true,
    area: chart,
    caption: () => "Hit rate by slots a layer",
    label: () => `Hit rate by slots: ${big.rates.filter(([n]) => n >= A && n <= E).map(([n]) => `${n}: ${percent(all[n - A])}, shuffled ${percent(control(n - A))}`).join("; ")}`,
    draw(g) {
      const { layer, i } = at(), row = rates[layer], right = chart.x + chart.width;
      levels(ui, g, chart);
      const lines = [["this run", ui.accent, []], [`layer ${layer}`, ui.fg, [1, 3]], ["tokens shuffled", ui.muted, [5, 4]]];
      [(n) => all[n], (n) => row[n], control].forEach((value, k) => curve(g, chart, value, ...lines[k].slice(1)));
      if (same) for (const [n, rate] of big.rates) diamond(ui, g, ...spot(chart, n - A, rate));
      dot(ui, g, chart, i, all[i]);
      lines.forEach(([name, color, dash], k) => {
        const y = chart.y + chart.height - 58 + 15 * k, sample = { x: right - 30, y, width: 28, height: 0, columns: 2, end: 1 };
        curve(g, sample, () => 0, color, dash);
        words(g, name, right - 34, y, ui.fg, "right");
      });
      if (!same) return;
      diamond(ui, g, right - 16, chart.y + chart.height - 13);
      words(g, "gpt-oss-20b, published", right - 34, chart.y + chart.height - 13, ui.fg, "right");
    },
    pick: (x) => ui.set({ slots: slotAt(chart, x) }),
  });
  plot(ui, {
    half: true,
    area: map,
    ramp: () => ["0%", "100%"],
    caption: () => "Hit rate, layer by slots",
    label: () => `Hit rate of ${L} layers with ${get("slots")} slots: ${rates.map((row) => percent(row[at().i])).join(", ")}`,
    draw: (g) => heat(ui, g, map, (l, n) => rates[l][n], String, at().layer, at().i),
    pick: (x, y) => ui.set({ layer: cellAt(map, x, y)[0], slots: slotAt(map, x) }),
  });
  const time = grid(L, T);
  plot(ui, {
    area: time,
    ramp: () => ["0", `${A} experts`],
    caption: () => `Experts fetched with ${get("slots")} slots, layer by position${first ? `; the answer begins at ${first}` : ""}`,
    label: () => `Experts fetched in ${L} layers for ${T} tokens; most for token ${get("token")}`,
    draw(g) {
      heat(ui, g, time, (l, t) => fetched(l, t) / A, String, at().layer, at().token);
      if (first) fill(g, ui.fg, time.x + (first / T) * time.width - 1, 0, 2, time.height + 8);
    },
    pick(x, y) {
      const [layer, token] = cellAt(time, x, y);
      ui.set({ layer, token });
    },
  });

  const sums = h("div");
  ui.figures.append(sums);
  const sum = (name, slots, rate, of) => {
    const load = moved(rate, of), held = slots * of.n_layers * of.expert_bytes;
    return h("p", {}, h("b", {}, name), `: ${of.n_layers} layers × ${of.n_active} lookups × ${percent(1 - rate)} missed × ${count(of.expert_bytes)} bytes = ${weight(load)} a token. ` +
      `${Object.values(links).map(([link, gb]) => `${link}: ${told(speed(load, gb))}`).join("; ")}. Held: ${weight(held)} of ${weight((held / slots) * of.n_experts)}.`);
  };
  ui.updates.push(() => {
    const { slots, i } = at(), best = big.rates.filter(([n]) => n <= slots).pop() ?? big.rates[0];
    sums.replaceChildren(sum(`This run, ${slots} slots`, slots, all[i], { n_layers: L, n_experts: E, n_active: A, expert_bytes: size }),
      sum(`gpt-oss-20b, ${best[0]} slots, published hit rate`, ...best, big));
  });
  strip(ui, tokens, () => range(T).map((t) => everywhere(t) / (L * A)), () => at().token, (token) => ui.set({ token }));
  const dropped = get("dropped");
  return finish(ui,
    "Each layer keeps the experts it used last. Only moving experts is counted: computing and reading memory come on top, and what a program fetches ahead is not modeled. " +
    `${first ? "The prompt is read in one pass; it only fills the cache. " : ""}Published: LRU over 25 answers of gpt-oss-20b to benchmark questions, from the expert lists of AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting (Apache-2.0); ` +
    `its control with shuffled tokens: ${big.shuffled.map(([n, rate]) => `${percent(rate)} at ${n} slots`).join(", ")}.${dropped ? ` The last ${dropped} tokens of the recording are not shown.` : ""}`);
}

// Of each layer, the share of lookups that find their expert with A, A + 1, ... E slots.
function hitRates(away, L, T, A, E, first) {
  return range(L).map((l) => {
    const counted = away.subarray((l * T + first) * A, (l + 1) * T * A);
    return range(E + 1 - A).map((i) => counted.reduce((sum, d) => sum + (d < A + i), 0) / counted.length);
  });
}

function diamond(ui, g, x, y) {
  g.save();
  g.translate(x, y);
  g.rotate(Math.PI / 4);
  fill(g, ui.bg, -4, -4, 8, 8);
  g.strokeStyle = ui.fg;
  g.lineWidth = 1.5;
  g.strokeRect(-3.5, -3.5, 7, 7);
  g.restore();
}

export default { render };
