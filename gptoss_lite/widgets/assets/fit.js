// What fits a memory: the sums of gptoss_lite.account in whole numbers, with coefficients from there.

const PARTS = { experts: "#0a5cad", "other weights": "#9b9476", "KV cache": "#fee838", overhead: "#fff" };

function render({ model, el }) {
  const get = (name) => model.get(name);
  const models = get("models"), bits = get("bits"), overhead = get("overhead_bytes");
  const dtype = (m, part) => (get(part) === "published" ? m[part] : get(part));
  const weights = (m, part) => Math.floor((m[`n_${part}`] * bits[dtype(m, part)]) / 8);
  const held = (m, tokens) => m.layers.reduce((sum, [window, n]) => sum + n * Math.min(tokens, window ?? tokens), 0);
  const where = () => `${get("memory")} ${get("unit")}`;

  function fit(m) {
    const tokens = Math.min(get("context"), m.context), memory = get("memory") * (get("unit") === "GB" ? 1e9 : 2 ** 30);
    const cache = (n) => get("batch") * held(m, n) * m.kv;
    const parts = [weights(m, "experts"), weights(m, "dense"), cache(tokens), overhead];
    const stored = parts[0] + parts[1], needed = stored + parts[2] + overhead, fits = needed <= memory;
    let longest = 0;
    for (let step = 2 ** 40; step >= 1; step /= 2)
      if (longest + step <= m.context && stored + cache(longest + step) + overhead <= memory) longest += step;
    const verdict = fits ? "fits" : `short by ${gib(needed - memory)}`;
    return { m, tokens, memory, parts, stored, needed, fits, longest, verdict, flops: m.matmul_flops + m.attention_flops * held(m, tokens) };
  }
  const all = () => models.map(fit), chosen = () => all().filter(({ m }) => m.name === get("model"));

  const status = () => {
    const [{ m, tokens, memory, parts, stored, needed, fits, longest, verdict }] = chosen();
    const more = longest ? `A context of ${count(longest)} tokens would fit.` : "No context fits beside the weights.";
    return [`${m.name}, ${get("batch")} × ${count(tokens)} tokens, ${where()}. It ${fits ? "fits" : "does not fit"}: ${gib(stored)} weights + ` +
      `${gib(parts[2])} KV cache at ${count(tokens)} tokens + ${gib(overhead)} overhead = ${gib(needed)} of ${gib(memory)}` +
      (fits ? `. Longest context: ${count(longest)} tokens.` : `, ${verdict}. ${more}`)];
  };
  const tables = () => [{ caption: `On ${where()}`, rows: [
    ["model", "parameters", "active", "weight bytes", "KV cache bytes", "needed bytes", "memory bytes", "FLOPs per token", "longest context", "verdict"],
    ...all().map((f) => [f.m.name, f.m.parameters, f.m.active, f.stored, f.parts[2], f.needed, f.memory, f.flops, f.longest, f.verdict])] }];

  const ui = start(model, el, { traits: ["model", "memory", "unit", "context", "batch", "dense", "experts"], status, tables });
  const formats = { published: "as published", ...Object.fromEntries(Object.entries(bits).map(([name, n]) => [name, `${name}, ${n} bits`])) };
  choice(ui, "model", "Model", Object.fromEntries(models.map(({ name }) => [name, name])));
  steps(ui, "memory", "Memory", get("memories"), where);
  choice(ui, "unit", "Unit", { GB: "GB, 10⁹ bytes", GiB: "GiB, 2³⁰ bytes" });
  steps(ui, "context", "Context", lengths(Math.max(...models.map((m) => m.context))), (n) => `${count(n)} tokens`);
  steps(ui, "batch", "Sequences", range(8).map((i) => 2 ** i), String);
  choice(ui, "experts", "Experts' format", formats);
  choice(ui, "dense", "Format of the rest", formats);

  // Bars with the memory as a line: of the chosen model, with sizes, and of all, with names.
  function bars(list, caption, x, size) {
    const area = { x, y: 18, right: 8, height: list().length * size + (x ? 10 : 28) };
    plot(ui, { area, caption, label: () => list().map(({ m, verdict }) => `${m.name}: ${verdict}`).join("; "), draw(g) {
      const found = list(), { memory } = found[0], scale = area.width / Math.max(memory, ...found.map((f) => f.needed));
      const box = (left, y, wide, tall, color) => {
        fill(g, color, left, y, wide, tall);
        g.strokeRect(left, y, wide, tall);
      };
      found.forEach((f, i) => {
        let left = x;
        const y = area.y + i * size + 6;
        Object.values(PARTS).forEach((color, k) => {
          const wide = f.parts[k] * scale;
          g.strokeStyle = ui.bg;
          box(left, y, wide, size - 12, color);
          if (!x && wide > 60) words(g, gib(f.parts[k]), left + 5, y + size / 2 - 6, k ? "#000" : "#fff");
          left += wide;
        });
        g.strokeStyle = ui.muted;
        g.strokeRect(x, y, left - x, size - 12);
        if (x) words(g, f.m.name, x - 6, y + 4, ui.fg, "right"), words(g, f.verdict, x - 6, y + 18, ui.muted, "right");
      });
      const foot = area.y + found.length * size;
      g.strokeStyle = ui.fg;
      box(x + memory * scale - 1, 16, 0.5, foot - 14, ui.fg);
      words(g, where(), x + memory * scale + 4, 8, ui.fg, memory * scale > area.width / 2 ? "right" : "center");
      if (x) return;
      let left = 2;
      for (const [name, color] of Object.entries(PARTS)) {
        box(left, foot + 12, 10, 10, color);
        words(g, name, left + 14, foot + 17, ui.fg);
        left += 24 + g.measureText(name).width;
      }
    } });
  }
  bars(chosen, () => chosen().map(({ m, verdict }) => `${m.name}: ${verdict}`)[0], 0, 46);
  bars(all, () => "All models, on one scale", 118, 40);

  const sums = h("div");
  ui.figures.append(sums);
  ui.updates.push(() => {
    const [{ m, tokens, parts, stored, flops }] = chosen();
    const product = (part) => `${count(m[`n_${part}`])} × ${bits[dtype(m, part)]} / 8`;
    const layers = m.layers.map(([window, n]) => `${n} × ${count(Math.min(tokens, window ?? tokens))}`).join(" + ");
    const lines = {
      Parameters: `${count(m.parameters)}, of which a token uses ${count(m.active)} (${percent(m.active / m.parameters)})`,
      Weights: `${m.n_experts ? `${product("experts")} + ` : ""}${product("dense")} = ${count(stored)} bytes = ${bytes(stored)}`,
      "KV cache": `${get("batch")} × (${layers}) × ${count(m.kv)} = ${count(parts[2])} bytes = ${bytes(parts[2])}`,
      "FLOPs per token": `${count(m.matmul_flops)} + (${layers}) × ${count(m.attention_flops)} = ${count(flops)}`,
    };
    sums.replaceChildren(...Object.entries(lines).map(([name, sum]) => h("p", {}, h("b", {}, name), `: ${sum}`)));
  });
  return finish(ui, "GB: 10⁹ bytes, GiB: 2³⁰. Weights: experts, then the rest, each number × bits / 8. In brackets: layers × tokens they hold. " +
    "The cache is in bfloat16. Active parameters leave the embedding table out. As in gptoss_lite.account, a multiply-add is two operations.");
}

export default { render };
