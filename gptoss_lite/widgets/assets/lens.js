// The logit lens: what each layer would say next, and how sure it is.

const COLORS = {
  p: "probability of the first choice",
  rank: "rank of the token that comes next",
  kl: "nats from the last layer",
};

function render({ model, el }) {
  const ui = start(model, el), { now } = ui, { tokens, n_layers: L, n_choices: C, pieces } = now, T = tokens.length;
  const [ids, ps, ranks] = ["choices", "p", "rank"].map((name) => numbers(ui, name, Uint16Array));
  const kls = numbers(ui, "kl", Float32Array), worst = most(ranks), far = most(kls);

  const rank = (l, t) => ranks[l * T + t], kl = (l, t) => kls[l * T + t];
  const ranked = (l, t) => count(rank(l, t)) + (rank(l, t) === 65535 ? "+" : "");
  const share = (p) => (p < 0.005 ? "< 1%" : percent(p));
  const top = (l, t) => range(C).map((k) => (l * T + t) * C + k).map((k) => [pieces[ids[k]], ps[k] / 65535]);
  const here = () => top(now.layer, ui.index());
  const next = (t) => tokens[t + 1] ?? top(L - 1, t)[0][0]; // where the text ends, the model's choice
  const settled = (t) => range(L + 1).find((l) => range(L - l).every((i) => rank(l + i, t) === 1));
  const shown = cached(() => now.color, () => {
    const value = {
      p: (i) => ps[i * C] / 65535,
      rank: (i) => 1 - Math.log(ranks[i]) / Math.log(Math.max(2, worst)),
      kl: (i) => kls[i] / (far || 1),
    }[now.color];
    return Float32Array.from(kls, (_, i) => value(i));
  });
  const move = (layer, t) => ui.pick(t, { layer });

  slider(ui, "layer", "Layer", L - 1);
  tokenSlider(ui);
  choice(ui, "color", "Color shows", COLORS);
  plot(ui, {
    area: ui.grid(L),
    ramp: () => ({ p: ["0%", "100%"], rank: [`rank ${count(worst)}`, "rank 1"], kl: ["0", `${far.toFixed(1)} nats`] })[now.color],
    caption: () => `Layer by position: ${COLORS[now.color]}`,
    draw: (pen) => pen.heat(shown(), String, now.layer, ui.index()),
    pick: move,
  });

  // Some columns around the selected one, with text.
  const size = L > 12 ? 17 : 24, close = { x: 56, y: 22, height: L * size, foot: 60, rows: L };
  plot(ui, {
    area: close,
    caption: () => "First choices; above the token that is read, below and in bold the one that comes next",
    label: () => `Around token ${ui.token()}; here ${visible(here()[0][0])}`,
    draw(pen) {
      const { x, y, width, height } = close, columns = clamp(Math.floor(width / 82), Math.min(2, T), T), wide = width / columns;
      const begin = clamp(ui.index() - (columns >> 1), 0, T - columns), value = (l, c) => shown()[l * T + begin + c];
      Object.assign(close, { columns, begin, from: ui.token(begin) });
      pen.heat(range(L).flatMap((l) => range(columns).map((c) => value(l, c))), (l) => `layer ${l}`, now.layer, ui.index() - begin);
      pen.words("reads", x - 5, 10, "muted", "right");
      pen.words("next", x - 5, y + height + 27, "muted", "right");
      const put = (text, c, down, color, bold) => {
        pen.g.font = `${bold ? "bold " : ""}12px system-ui, sans-serif`;
        pen.words(cut(pen, text, wide - 8), x + (c + 0.5) * wide, down, color, "center");
      };
      for (const c of range(columns)) {
        put(tokens[begin + c], c, 10, "fg");
        for (const l of range(L)) put(top(l, begin + c)[0][0], c, y + (l + 0.5) * size, value(l, c) > 0.47 ? "#000" : "#fff", rank(l, begin + c) === 1);
        put(next(begin + c), c, y + height + 27, "fg", true);
      }
    },
    pick: (l, c) => move(l, close.begin + c),
  });

  // Rows of [name, value, share, color], the share as a bar.
  const bars = (area, rows, caption, pick) => plot(ui, { half: true, area, caption, pick,
    label: () => rows().map(([name, value]) => `${visible(name)}: ${value}`).join("; "),
    draw(pen) {
      const { x, y, width, height } = area, tall = height / rows().length;
      rows().forEach(([name, value, part, color], k) => {
        const top = y + k * tall, middle = top + tall / 2;
        pen.words(cut(pen, name, x - 12), x - 6, middle, "fg", "right");
        pen.fill("soft", x, top + 2, width, tall - 4);
        pen.fill(color, x, top + 2, Math.max(1, part * width), tall - 4);
        pen.words(value, x + width + 6, middle);
      });
    } });
  bars({ x: 110, y: 4, right: 42, height: C * 24 }, () => here().map(([piece, p]) => [piece, share(p), p, "accent"]),
    () => `Layer ${now.layer}, token ${ui.token()}: the ${C} most probable`);
  bars({ x: 60, y: 4, right: 125, height: L * clamp(120 / L, 13, 40), rows: L }, () => {
    const t = ui.index(), end = Math.max(0.1, ...range(L).map((l) => kl(l, t)));
    return range(L).map((l) => [`layer ${l}`, `${kl(l, t).toFixed(1)}, rank ${ranked(l, t)}`, kl(l, t) / end, l === now.layer ? "fg" : "accent"]);
  }, () => `Token ${ui.token()}: nats from the last layer, and rank of the next`, (layer) => ui.set({ layer }));
  strip(ui, (t) => shown()[now.layer * T + t]);

  const status = () => {
    const { layer } = now, t = ui.index(), from = settled(t);
    const list = here().flatMap(([piece, p], k) => [k ? ", " : "", quoted(piece), ` ${share(p)}`]);
    return [`Layer ${layer}, token ${ui.token()} `, quoted(tokens[t]), ": ", ...list, ". The text goes on with ", quoted(next(t)),
      `, here at rank ${ranked(layer, t)}${from < L ? `, first from layer ${from} on` : ", never first to the end"}; ${kl(layer, t).toFixed(2)} nats from the last layer.`];
  };
  const tables = () => {
    const { layer } = now, t = ui.index(), one = ([piece, p]) => [{ token: piece }, p.toFixed(4)];
    const head = ["rank of the next token", "nats from the last layer"], both = (l, i) => [rank(l, i), kl(l, i).toFixed(4)];
    return [
      table(`Token ${ui.token()}, layer by layer`, ["layer", ...head, ...range(C).flatMap((k) => [`choice ${k + 1}`, "probability"])], L,
        (l) => [l, ...both(l, t), ...top(l, t).flatMap(one)]),
      table(`First choices after layer ${layer}`, ["position", "token", "first choice", "probability", ...head], T,
        (i) => [ui.token(i), { token: tokens[i] }, ...one(top(layer, i)[0]), ...both(layer, i)]),
    ];
  };
  return finish(ui, { status, tables, note: "After each block the stream goes through the model's last norm and output head, which were trained for the last block only: " +
    "what an early layer holds in another form, this lens does not see. Ranks and nats are over the whole vocabulary." });
}

// A text, shortened to a width.
function cut({ g }, text, width) {
  const letters = [...visible(text)];
  let n = letters.length, short = visible(text);
  while (n && g.measureText(short).width > width) short = `${letters.slice(0, --n).join("")}…`;
  return short;
}

export default { render };
