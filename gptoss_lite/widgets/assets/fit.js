// What fits a memory: the sums of gptoss_lite.account in whole numbers, with coefficients from there.

const PARTS = { experts: "#0a5cad", rest: "#9b9476", "KV cache": "#fee838", overhead: "#fff" };

function render({ model, el }) {
  const ui = start(model, el), { now } = ui, { models, bits, overhead_bytes: overhead } = now;
  const dtype = (m, part) => (now[part] === "published" ? m[part] : now[part]);
  const size = (m, part) => bits[dtype(m, part)]; // bits of a number
  const wide = (m) => bits[m.cached[dtype(m, "dense")]] / 8; // bytes of a key's or a value's number
  const weights = (m, part) => Math.floor((m[`n_${part}`] * size(m, part)) / 8);
  const held = (m, tokens) => m.layers.reduce((sum, [window, n]) => sum + n * Math.min(tokens, window ?? tokens), 0);
  const where = () => `${now.memory} ${now.unit}`;

  function fit(m) {
    const tokens = Math.min(now.context, m.context), memory = now.memory * (now.unit === "GB" ? 1e9 : 2 ** 30);
    const cache = (n) => now.batch * held(m, n) * m.kv * wide(m);
    const parts = [weights(m, "experts"), weights(m, "dense"), cache(tokens), overhead];
    const stored = parts[0] + parts[1], needed = stored + parts[2] + overhead, fits = needed <= memory;
    let longest = 0;
    for (let step = 2 ** 40; step >= 1; step /= 2)
      if (longest + step <= m.context && stored + cache(longest + step) + overhead <= memory) longest += step;
    const verdict = fits ? "fits" : `short by ${gib(needed - memory)}`, flops = m.matmul_flops + m.attention_flops * held(m, tokens);
    return { m, name: m.name, tokens, memory, parts, stored, needed, fits, longest, verdict, flops };
  }
  const all = cached(() => ui.names.map((name) => now[name]), () => models.map(fit));
  const chosen = () => all().find(({ name }) => name === now.model);

  const format = (n, name) => (n ? `${name}, ${n} bits` : "as published");
  choice(ui, "model", "Model", Object.fromEntries(models.map(({ name }) => [name, name])));
  steps(ui, "memory", "Memory", now.memories, where);
  choice(ui, "unit", "Unit", { GB: "GB, 10⁹ bytes", GiB: "GiB, 2³⁰ bytes" });
  steps(ui, "context", "Context", lengths(most(models.map((m) => m.context))), (n) => `${count(n)} tokens`);
  steps(ui, "batch", "Sequences", range(8).map((i) => 2 ** i), String);
  choice(ui, "experts", "Experts' format", { published: 0, ...bits }, format);
  choice(ui, "dense", "Format of the rest", { published: 0, ...bits }, format);

  // Bars with the memory as a line: of the chosen model, with sizes, and of all, with names.
  const told = ({ name, verdict }) => `${name}: ${verdict}`;
  function bars(list, caption, x, tall) {
    const area = { x, y: 18, right: 8, height: list().length * tall + (x ? 10 : 28) };
    plot(ui, { area, caption, label: () => (x ? list().map(told).join("; ") : ""), draw(pen) {
      const found = list(), { memory } = found[0], scale = area.width / Math.max(memory, ...found.map((f) => f.needed));
      const box = (color, edge, ...place) => {
        pen.fill(color, ...place);
        pen.g.strokeStyle = ui.colors[edge];
        pen.g.strokeRect(...place);
      };
      found.forEach((f, i) => {
        const y = area.y + i * tall + 6;
        let left = x;
        Object.values(PARTS).forEach((color, k) => {
          const wide = f.parts[k] * scale;
          box(color, "muted", left, y, wide, tall - 12);
          if (!x && wide > 60) pen.words(gib(f.parts[k]), left + 5, y + tall / 2 - 6, k ? "#000" : "#fff");
          left += wide;
        });
        if (x) pen.words(f.name, x - 6, y + 4, "fg", "right"), pen.words(f.verdict, x - 6, y + 18, "muted", "right");
      });
      const foot = area.y + found.length * tall, end = x + memory * scale;
      box("fg", "fg", end - 1, 16, 0.5, foot - 14);
      pen.words(where(), end + 4, 8, "fg", memory * scale > area.width / 2 ? "right" : "left");
      if (x) return;
      let left = 2;
      for (const [name, color] of Object.entries(PARTS)) {
        box(color, "fg", left, foot + 12, 10, 10);
        pen.words(name, left + 14, foot + 17);
        left += 24 + pen.g.measureText(name).width;
      }
    } });
  }
  bars(() => [chosen()], () => told(chosen()), 0, 46);
  bars(all, () => "All models, on one scale", 118, 40);

  panel(ui, () => {
    const { m, tokens, parts, stored, flops } = chosen(), product = (part) => `${count(m[`n_${part}`])} × ${size(m, part)} / 8`;
    const layers = m.layers.map(([window, n]) => `${n} × ${count(Math.min(tokens, window ?? tokens))}`).join(" + ");
    return Object.entries({
      Parameters: `${count(m.parameters)}, of which a token uses ${count(m.active)} (${percent(m.active / m.parameters)})`,
      Weights: `${m.n_experts ? `${product("experts")} + ` : ""}${product("dense")} = ${count(stored)} bytes = ${bytes(stored)}`,
      "KV cache": `${now.batch} × (${layers}) × ${count(m.kv)} × ${wide(m)} = ${count(parts[2])} bytes = ${bytes(parts[2])}`,
      "FLOPs per token": `${count(m.matmul_flops)} + (${layers}) × ${count(m.attention_flops)} = ${count(flops)}`,
    }).map(([name, sum]) => h("p", {}, h("b", {}, name), `: ${sum}`));
  });

  const status = () => {
    const { name, tokens, memory, parts, stored, needed, fits, longest, verdict } = chosen();
    const more = longest ? `A context of ${count(longest)} tokens would fit.` : "No context fits beside the weights.";
    return [`${name}, ${now.batch} × ${count(tokens)} tokens, ${where()}. It ${fits ? "fits" : "does not fit"}: ${gib(stored)} weights + ` +
      `${gib(parts[2])} KV cache at ${count(tokens)} tokens + ${gib(overhead)} overhead = ${gib(needed)} of ${gib(memory)}` +
      (fits ? `. Longest context: ${count(longest)} tokens.` : `, ${verdict}. ${more}`)];
  };
  const head = ["model", "parameters", "active", "weight bytes", "KV cache bytes", "needed bytes", "memory bytes", "FLOPs per token", "longest context", "verdict"];
  const row = ({ m, parts, stored, needed, memory, flops, longest, verdict }) => [m.name, m.parameters, m.active, stored, parts[2], needed, memory, flops, longest, verdict];
  const tables = () => [table(`On ${where()}`, head, models.length, (i) => row(all()[i]))];
  return finish(ui, { status, tables, note: "GB: 10⁹ bytes, GiB: 2³⁰. Weights: experts, then the rest, each number × bits / 8. In brackets: layers × tokens they hold. " +
    "The cache has the format of the rest, but float32 for float16 and the published one for MXFP4. Active parameters leave the embedding table out. As in gptoss_lite.account, a multiply-add is two operations." });
}

export default { render };
