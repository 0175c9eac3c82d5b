// What fits a memory: the sums of gptoss_lite.account in whole numbers, with coefficients from there.

const PARTS = [["experts", "#0a5cad"], ["other weights", "#9b9476"], ["KV cache", "#fee838"], ["overhead", "#fff"]];

function render({ model, el }) {
  const get = (name) => model.get(name);
  const models = get("models"), bits = get("bits"), overhead = get("overhead_bytes");
  const weights = (n, dtype) => Math.floor((n * bits[dtype]) / 8);
  const dtype = (m, part) => (get(part) === "published" ? m[part] : get(part));
  const held = (m, tokens) => m.layers.reduce((sum, [window, n]) => sum + n * Math.min(tokens, window ?? tokens), 0);
  const cache = (m, tokens) => get("batch") * held(m, tokens) * m.kv;
  const gib = (n) => bytes(n).split(" = ")[1];
  const memory = () => get("memory") * (get("unit") === "GB" ? 1e9 : 2 ** 30);

  function fit(m) {
    const tokens = Math.min(get("context"), m.context);
    const parts = [weights(m.n_experts, dtype(m, "experts")), weights(m.n_rest, dtype(m, "dense")), cache(m, tokens), overhead];
    const stored = parts[0] + parts[1], room = memory() - stored - overhead, needed = memory() - room + parts[2];
    let low = 0, high = m.context;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (cache(m, middle) <= room) low = middle;
      else high = middle - 1;
    }
    return { name: m.name, parts, stored, tokens, needed, fits: parts[2] <= room, longest: low, flops: m.matmul_flops + m.attention_flops * held(m, tokens) };
  }
  const chosen = () => models.find(({ name }) => name === get("model"));
  const where = () => `${get("memory")} ${get("unit")}`;
  const verdict = ({ fits, needed }) => (fits ? "fits" : `short by ${gib(needed - memory())}`);

  const status = () => {
    const { name, parts, stored, tokens, needed, fits, longest } = fit(chosen());
    return [`${name} on ${where()}${get("batch") > 1 ? `, ${get("batch")} sequences` : ""}: It ${fits ? "fits" : "does not fit"}: ${gib(stored)} weights + ` +
      `${gib(parts[2])} KV cache at ${count(tokens)} tokens + ${gib(overhead)} overhead = ${gib(needed)} of ${gib(memory())}` +
      (fits ? `. Longest context: ${count(longest)} tokens.`
        : `, short by ${gib(needed - memory())}. ${longest ? `A context of ${count(longest)} tokens would fit.` : "No context fits beside the weights."}`)];
  };
  const tables = () => [{ caption: `On ${where()}, ${count(memory())} bytes`, rows: [
    ["model", "parameters", "active", "weight bytes", "KV cache bytes", "needed bytes", "FLOPs per token", "fits", "longest context"],
    ...models.map((m) => [m, fit(m)]).map(([m, f]) =>
      [m.name, m.parameters, m.active, f.stored, f.parts[2], f.needed, f.flops, f.fits ? "yes" : "no", f.longest])] }];

  const traits = ["model", "memory", "unit", "context", "batch", "dense", "experts"];
  const ui = start(model, el, { traits, status, tables });
  const formats = { published: "as published", ...Object.fromEntries(Object.entries(bits).map(([name, n]) => [name, `${name}, ${n} bits`])) };
  choice(ui, "model", "Model", Object.fromEntries(models.map(({ name }) => [name, name])));
  steps(ui, "memory", "Memory", get("memories"), where);
  choice(ui, "unit", "Unit", { GB: "GB, 10⁹ bytes", GiB: "GiB, 2³⁰ bytes" });
  steps(ui, "context", "Context", lengths(Math.max(...models.map((m) => m.context))), (n) => `${count(n)} tokens`);
  steps(ui, "batch", "Sequences", range(8).map((i) => 2 ** i), String);
  choice(ui, "experts", "Experts' format", formats);
  choice(ui, "dense", "Format of the rest", formats);

  // Bars of parts with the memory as a line: of the chosen model alone, and of all on one scale.
  function bars(list, caption, x, size) {
    const area = { x, y: 18, right: 8, height: list().length * size + 24 };
    plot(ui, { area, caption, label: () => list().map(fit).map((f) => `${f.name}: ${verdict(f)}`).join("; "), draw(g) {
      const all = list().map(fit), end = Math.max(memory(), ...all.map((f) => f.needed));
      const box = (left, y, wide, k) => {
        g.fillStyle = PARTS[k][1];
        g.fillRect(left, y, wide, size - 12);
        g.strokeStyle = "#000";
        g.strokeRect(left, y, wide, size - 12);
      };
      const to = (n) => area.x + (n / end) * area.width, foot = area.y + all.length * size;
      const words = (text, at, y, color = ui.fg, align = "left") => ((g.fillStyle = color), (g.textAlign = align), g.fillText(text, at, y));
      all.forEach((f, i) => {
        const y = area.y + i * size + 6;
        f.parts.reduce((sum, n, k) => {
          box(to(sum), y, to(n) - area.x, k);
          if (!x && n / end > 0.3) words(gib(n), to(sum) + 6, y + size / 2 - 6, k ? "#000" : "#fff");
          return sum + n;
        }, 0);
        if (x) words(f.name, x - 6, y, ui.fg, "right"), words(verdict(f), x - 6, y + 13, ui.muted, "right");
      });
      g.strokeStyle = ui.fg;
      g.lineWidth = 2;
      g.setLineDash([5, 3]);
      g.strokeRect(to(memory()), area.y, 0, foot - area.y);
      words(where(), to(memory()), 8, ui.fg, memory() > end / 2 ? "right" : "center");
      g.setLineDash([]);
      g.lineWidth = 1;
      PARTS.reduce((left, [name], k) => {
        g.fillStyle = PARTS[k][1];
        g.fillRect(left, foot + 10, 10, 10);
        g.strokeRect(left, foot + 10, 10, 10);
        words(name, left + 14, foot + 16);
        return left + 24 + g.measureText(name).width;
      }, 2);
    } });
  }
  bars(() => [chosen()], () => `${get("model")}: ${verdict(fit(chosen()))}`, 0, 44);
  bars(() => models, () => "All models, on one scale", 118, 38);

  const sums = h("div");
  ui.figures.append(sums);
  ui.updates.push(() => {
    const m = chosen(), f = fit(m), product = (n, part) => `${count(n)} × ${bits[dtype(m, part)]} / 8`;
    const layers = m.layers.map(([window, n]) => `${n} × ${window && window < f.tokens ? `${count(window)} (window)` : count(f.tokens)}`).join(" + ");
    const lines = {
      Parameters: `${count(m.parameters)}; one token uses ${count(m.active)} (${percent(m.active / m.parameters)}), its output head among them`,
      Weights: `${m.n_experts ? `${product(m.n_experts, "experts")} (experts) + ` : ""}${product(m.n_rest, "dense")} = ${count(f.stored)} bytes = ${bytes(f.stored)}`,
      "KV cache": `${get("batch")} × (${layers} tokens) × ${count(m.kv)} bytes = ${count(f.parts[2])} bytes = ${bytes(f.parts[2])}`,
      "FLOPs per token": `${count(m.matmul_flops)} for matrices + (${layers} keys) × ${count(m.attention_flops)} = ${count(f.flops)}`,
    };
    sums.replaceChildren(...Object.entries(lines).map(([name, sum]) => h("p", {}, h("b", {}, name), `: ${sum}.`)));
  });
  return finish(ui, "GB: 10⁹ bytes, GiB: 2³⁰. The cache is in bfloat16 and sliding layers keep their window only. A context ends at the model's own limit. " +
    "Overhead is for activations and the program. The same sums as gptoss_lite.account, which counts a multiply-add as two operations.");
}

export default { render };
