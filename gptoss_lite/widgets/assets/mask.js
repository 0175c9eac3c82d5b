// Which keys a query sees, and what the two kinds of cache hold once it has been read.

const [REST, SINK] = ["#7d7c78", "#b07d00"];

function render({ model, el }) {
  const get = (name) => model.get(name);
  const [L, H, context, bits, streams] = ["n_layers", "n_heads", "context", "bits", "n_first"].map(get);
  // A learned sink is no token; StreamingLLM keeps some.
  const first = () => (get("sinks") === "first" ? streams : 0);
  const kinds = () => {
    const slide = range(L).filter((l) => get("pattern")[l % get("pattern").length] === "S").length;
    return [["Sliding", slide, get("window") + first(), "SlidingCache"], ["Full", L - slide, Infinity, "FullCache"]];
  };
  const token = (heads = get("kv_heads")) => (2 * heads * get("head_dim") * bits[get("dtype")]) / 8; // bytes in one layer
  const total = (n) => kinds().reduce((sum, [, layers, most]) => sum + layers * Math.min(n, most), 0) * token();
  const sizes = (n) => [total(n), L * n * token(), L * n * token(H)];
  const names = ["this cache", "all layers full", "and a key for each query head"];
  // The keys that query q sees, as pieces [from, to].
  const seen = (q, most) => (q < most || !first() ? [[Math.max(0, q - most + 1), q]] : [[0, streams - 1], [q - get("window") + 1, q]]);
  const told = (q, most) => `sees ${count(Math.min(q + 1, most))} of ${count(q + 1)} keys, ${seen(q, most).map(([a, b]) => `${count(a)} to ${count(b)}`).join(" and ")}`;

  const status = () => {
    const q = get("query"), size = total(q + 1);
    return [`Query ${count(q)}. ${kinds().filter(([, layers]) => layers).map(([kind, layers, most, name]) =>
      `${kind} layers (${layers}): ${told(q, most)}; ${name} holds as many tokens, ${count(Math.min(q + 1, most) * token())} bytes. `).join("")}` +
      `All layers: ${count(size)} bytes = ${bytes(size)}.`];
  };
  const tables = () => [{ caption: "Bytes of the cache", rows: [["tokens", ...names],
    ...[get("query") + 1, ...lengths(context).filter((n) => Math.log2(n) % 1 === 0), context].map((n) => [n, ...sizes(n)])] }];

  const ui = start(model, el, { traits: ["pattern", "window", "sinks", "query", "kv_heads", "dtype"], status, tables });
  const places = lengths(context, 64);
  slider(ui, "query", "Query", 0, places.length - 1, 1, (q) => `position ${count(q)}`, (i) => ({ query: places[i] - 1 }), (q) => places.findLastIndex((n) => n <= q + 1));
  steps(ui, "window", "Window", lengths(4096), (n) => `${count(n)} keys`);
  choice(ui, "pattern", "Layers", get("patterns"));
  choice(ui, "sinks", "Sinks", { none: "none", learned: "learned (gpt-oss)", first: `first ${streams} tokens (StreamingLLM)` });
  steps(ui, "kv_heads", "Key/value heads", range(H).map((i) => i + 1).filter((k) => H % k === 0), (k) => `${k} of ${H}`);
  choice(ui, "dtype", "Numbers", Object.fromEntries(Object.entries(bits).map(([name, n]) => [name, `${name}, ${n} bits`])));

  const end = () => Math.max(16, 2 ** Math.ceil(Math.log2(get("query") + 1))); // of the drawings
  for (const i of [0, 1]) {
    const kind = () => kinds()[i], area = { x: 56, y: 4, height: 224 };
    const caption = () => (kind()[1] ? `${kind()[0]} layers (${kind()[1]}): queries down, keys across` : `No ${kind()[0].toLowerCase()} layers`);
    plot(ui, { half: true, area, caption, label: () => `${caption()}; query ${get("query")} ${told(get("query"), kind()[2])}`, draw(g) {
      const n = end(), rows = Math.min(n, 64), unit = n / rows, mine = Math.floor(get("query") / unit), { x, y, width, height } = area;
      const wide = width / n, tall = height / rows, gap = n > 64 ? 0 : 1;
      fill(g, ui.soft, x, y, width, height);
      for (let r = 0; kind()[1] && r < rows; r++) {
        for (const [a, b] of seen(r === mine ? get("query") : (r + 1) * unit - 1, kind()[2]))
          for (let k = a, part = gap || b - a + 1; k <= b; k += part)
            fill(g, r === mine ? ui.accent : REST, x + k * wide, y + r * tall, Math.max(1.5, part * wide - gap), tall - gap);
        if (get("sinks") === "learned") fill(g, SINK, x - 9, y + r * tall, 7, tall - gap);
      }
      frame(g, x, y + mine * tall, width, tall);
      words(g, "0", x - 14, y + 6, ui.muted, "right");
      words(g, count(n - 1), x - 14, y + height - 6, ui.muted, "right");
      ticks(g, { ...area, columns: n, stride: 1 });
    }, pick: (_, y) => ui.set({ query: cellAt({ ...area, size: area.height / end(), rows: Math.min(context, end()), columns: 1 }, 0, y)[0] }) });
  }

  const strip = { x: 2, y: 2, height: 68 };
  plot(ui, { area: strip, caption: () => `What one layer's cache holds after query ${count(get("query"))}, and has forgotten`, label: status, draw(g) {
    const n = get("query") + 1, wide = strip.width / end();
    kinds().forEach(([, layers, most, name], i) => {
      const y = 8 + 44 * i, held = Math.min(n, most);
      words(g, layers ? `${layers} × ${name}: ${count(held)} held, ${count(n - held)} forgotten; ${gib(layers * held * token())}` : `No ${name}`, 2, y, ui.fg);
      fill(g, ui.soft, 2, y + 10, strip.width, 16);
      if (!layers) return;
      fill(g, REST, 2, y + 16, n * wide, 4);
      for (const [a, b] of seen(n - 1, most)) fill(g, ui.accent, 2 + a * wide, y + 10, Math.max(1.5, (b - a + 1) * wide), 16);
    });
  } });

  const chart = { x: 56, y: 4, right: 8, height: 150 }, styles = [["accent", []], ["fg", [6, 4]], ["muted", [2, 3]]];
  const said = () => sizes(context).map((size, k) => `${names[k]} ${bytes(size)}`).join("; ");
  plot(ui, { area: chart, caption: () => "Bytes of the whole cache by tokens read, both by doublings", label: () => `At ${count(context)} tokens: ${said()}`, draw(g) {
    const { x, y, width, height } = chart, low = Math.log2(total(1)), high = Math.log2(sizes(context)[2]);
    const at = (n) => x + (Math.log2(n) / Math.log2(context)) * width, up = (size) => y + ((high - Math.log2(size)) / (high - low)) * height;
    for (let k = 10; k < high; k += 5) {
      if (k < low) continue;
      fill(g, ui.line, x, up(2 ** k), width, 1);
      words(g, `${2 ** (k % 10)} ${["KiB", "MiB", "GiB", "TiB"][Math.floor(k / 10) - 1]}`, x - 6, up(2 ** k), ui.muted, "right");
    }
    for (let n = 1; n <= context; n *= 16) words(g, count(n), at(n), y + height + 10, ui.muted, "center");
    styles.forEach(([color, dash], k) => {
      g.beginPath();
      for (const n of lengths(context)) g.lineTo(at(n), up(sizes(n)[k]));
      g.moveTo(x + width - 30, y + height - 46 + 16 * k);
      g.lineTo(x + width - 2, y + height - 46 + 16 * k);
      g.strokeStyle = ui[color];
      g.lineWidth = 2;
      g.setLineDash(dash);
      g.stroke();
      words(g, names[k], x + width - 36, y + height - 46 + 16 * k, ui.fg, "right");
    });
    const n = get("query") + 1;
    fill(g, ui.accent, at(n) - 5, up(total(n)) - 5, 10, 10);
  } });
  return finish(ui, "A window counts the query itself. A learned sink (the column at the left) is one number a head: no key, and no place in the cache. StreamingLLM keeps the keys of real tokens, which this package's caches do not. " +
    "Bytes are of keys and values, one sequence.");
}

export default { render };
