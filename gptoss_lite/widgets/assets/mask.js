// Which keys a query sees, and what the two kinds of cache hold once it has been read.

const [REST, SINK] = ["#7d7c78", "#b07d00"];

function render({ model, el }) {
  const ui = start(model, el), { now } = ui, { n_layers: L, n_heads: H, head_dim, context, bits, n_first: streams } = now;
  // A learned sink is no token; StreamingLLM keeps some.
  const first = () => (now.sinks === "first" ? streams : 0);
  const kinds = () => {
    const slide = range(L).filter((l) => now.pattern[l % now.pattern.length] === "S").length;
    return [["Sliding", slide, now.window + first(), "SlidingCache"], ["Full", L - slide, Infinity, "FullCache"]];
  };
  const token = (heads = now.kv_heads) => (2 * heads * head_dim * bits[now.dtype]) / 8; // bytes in one layer
  const total = (n) => kinds().reduce((sum, [, layers, most]) => sum + layers * Math.min(n, most), 0) * token();
  const sizes = (n) => [total(n), L * n * token(), L * n * token(H)];
  const names = ["this cache", "all layers full", "and a key for each query head"];
  // The keys that query q sees, as pieces [from, to].
  const seen = (q, most) => (q < most || !first() ? [[Math.max(0, q - most + 1), q]] : [[0, streams - 1], [q - now.window + 1, q]]);
  const told = (most) => `sees ${count(Math.min(now.query + 1, most))} of ${count(now.query + 1)} keys, ${seen(now.query, most).map(([a, b]) => `${count(a)} to ${count(b)}`).join(" and ")}`;

  steps(ui, "query", "Query", lengths(context, 64).map((n) => n - 1), (q) => `position ${count(q)}`);
  steps(ui, "window", "Window", lengths(4096), (n) => `${count(n)} keys`);
  choice(ui, "pattern", "Layers", now.patterns);
  choice(ui, "sinks", "Sinks", { none: "none", learned: "learned (gpt-oss)", first: `first ${streams} tokens (StreamingLLM)` });
  steps(ui, "kv_heads", "Key/value heads", range(H).map((i) => i + 1).filter((k) => H % k === 0), (k) => `${k} of ${H}`);
  choice(ui, "dtype", "Numbers", bits, (n, name) => `${name}, ${n} bits`);

  const end = () => Math.max(16, 2 ** Math.ceil(Math.log2(now.query + 1))); // of the drawings
  for (const i of [0, 1]) {
    const area = { x: 62, y: 4, height: 224 };
    const caption = () => {
      const [name, layers] = kinds()[i];
      return layers ? `${name} layers (${layers}): queries down, keys across` : `No ${name.toLowerCase()} layers`;
    };
    plot(ui, { half: true, area, caption, label: () => `Query ${now.query} ${told(kinds()[i][2])}`, draw(pen) {
      const [, layers, most] = kinds()[i], { x, y, width, height } = area, n = end(), rows = Math.min(n, 64), unit = n / rows, mine = Math.floor(now.query / unit);
      const wide = width / n, tall = height / rows, gap = n > 64 ? 0 : 1;
      Object.assign(area, { columns: n, rows: n });
      pen.fill("soft", x, y, width, height);
      for (let r = 0; layers && r < rows; r++) {
        for (const [a, b] of seen(r === mine ? now.query : (r + 1) * unit - 1, most))
          for (let k = a, part = gap || b - a + 1; k <= b; k += part)
            pen.fill(r === mine ? "accent" : REST, x + k * wide, y + r * tall, Math.max(1.5, part * wide - gap), tall - gap);
        if (now.sinks === "learned") pen.fill(SINK, x - 9, y + r * tall, 7, tall - gap);
      }
      pen.frame(x, y + mine * tall, width, tall);
      pen.words("0", x - 14, y + 6, "muted", "right");
      pen.words(count(n - 1), x - 14, y + height - 6, "muted", "right");
      pen.ticks();
    }, pick: (q) => ui.set({ query: Math.min(q, context - 1) }) });
  }

  const strip = { x: 2, y: 2, height: 68 };
  plot(ui, { area: strip, caption: () => `What one layer's cache holds after query ${count(now.query)}, and has forgotten`, draw(pen) {
    const n = now.query + 1, wide = strip.width / end();
    kinds().forEach(([, layers, most, name], i) => {
      const y = 8 + 44 * i, held = Math.min(n, most);
      pen.words(layers ? `${layers} × ${name}: ${count(held)} held, ${count(n - held)} forgotten; ${gib(layers * held * token())}` : `No ${name}`, 2, y, "fg", "left", strip.width);
      pen.fill("soft", 2, y + 10, strip.width, 16);
      if (!layers) return;
      pen.fill(REST, 2, y + 16, n * wide, 4);
      for (const [a, b] of seen(n - 1, most)) pen.fill("accent", 2 + a * wide, y + 10, Math.max(1.5, (b - a + 1) * wide), 16);
    });
  } });

  const chart = { x: 56, y: 4, right: 8, height: 150 };
  plot(ui, { area: chart, caption: () => "Bytes of the whole cache by tokens read, both by doublings", label: () => `At the end: ${sizes(context).map((size, k) => `${names[k]} ${bytes(size)}`).join("; ")}`, draw(pen) {
    const { x, y, width, height } = chart, low = Math.log2(total(1)), high = Math.log2(sizes(context)[2]);
    const at = (n, size) => [x + (Math.log2(n) / Math.log2(context)) * width, y + ((high - Math.log2(size)) / (high - low)) * height];
    for (let k = Math.max(10, 5 * Math.ceil(low / 5)); k < high; k += 5)
      pen.level(at(1, 2 ** k)[1], `${2 ** (k % 10)} ${["KiB", "MiB", "GiB", "TiB"][Math.floor(k / 10) - 1]}`);
    for (let n = 1; n <= context; n *= 16) pen.words(count(n), at(n, 1)[0], y + height + 10, "muted", "center");
    const lines = [[names[0], "accent"], [names[1], "fg", [6, 4]], [names[2], "muted", [2, 3]]];
    lines.forEach(([, ...style], k) => pen.line(lengths(context).map((n) => at(n, sizes(n)[k])), ...style));
    pen.legend(lines, y + height - 46);
    const [left, top] = at(now.query + 1, total(now.query + 1));
    pen.fill("accent", left - 5, top - 5, 10, 10);
  } });

  const status = () => [`Query ${count(now.query)}. ${kinds().filter(([, layers]) => layers).map(([kind, layers, most, name]) =>
    `${kind} layers (${layers}): ${told(most)}; ${name} holds as many tokens, ${count(Math.min(now.query + 1, most) * token())} bytes. `).join("")}` +
    `All layers: ${count(total(now.query + 1))} bytes = ${bytes(total(now.query + 1))}.`];
  const tables = () => {
    const shown = [now.query + 1, ...lengths(context).filter((n) => Math.log2(n) % 1 === 0), context];
    return [table("Bytes of the cache", ["tokens", ...names], shown.length, (i) => [shown[i], ...sizes(shown[i])])];
  };
  return finish(ui, { status, tables, note: "A window counts the query itself. A learned sink (the column at the left) is one number a head: no key, and no place in the cache. StreamingLLM keeps the keys of real tokens, which this package's caches do not. " +
    "Bytes are of keys and values, one sequence." });
}

export default { render };
