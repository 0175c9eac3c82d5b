// The logit lens: what each layer would say next, and how sure it is.

const COLORS = {
  p: "probability of the first choice",
  rank: "rank of the token that comes next",
  kl: "nats from the last layer",
};

function render({ model, el }) {
  const get = (name) => model.get(name);
  const [tokens, first, L, C, pieces] = ["tokens", "first", "n_layers", "n_choices", "pieces"].map(get);
  const ids = numbers(model, "choices", Uint16Array), ps = numbers(model, "p", Uint16Array), ranks = numbers(model, "rank", Uint16Array);
  const kls = numbers(model, "kl", Float32Array), T = tokens.length;
  const worst = ranks.reduce((a, b) => Math.max(a, b)), far = kls.reduce((a, b) => Math.max(a, b));

  const at = () => ({ layer: get("layer"), t: Math.min(T - 1, Math.max(0, get("token") - first)), color: get("color") });
  const share = (p) => (p < 0.005 ? "< 1%" : percent(p));
  const ranked = (l, t) => count(rank(l, t)) + (rank(l, t) === 65535 ? "+" : "");
  const top = (l, t) => range(C).map((k) => (l * T + t) * C + k).map((k) => [pieces[ids[k]], ps[k] / 65535]);
  const next = (t) => tokens[t + 1] ?? pieces[ids[((L - 1) * T + t) * C]]; // where the text ends, the model's choice
  const rank = (l, t) => ranks[l * T + t], kl = (l, t) => kls[l * T + t];
  const settled = (t) => range(L + 1).find((l) => range(L - l).every((i) => rank(l + i, t) === 1));
  // From 0 to 1.
  const shown = () => ({
    p: (l, t) => ps[(l * T + t) * C] / 65535,
    rank: (l, t) => 1 - Math.log(rank(l, t)) / Math.log(Math.max(2, worst)),
    kl: (l, t) => kl(l, t) / (far || 1),
  })[at().color];
  const ends = () => ({ p: ["0%", "100%"], rank: [`rank ${count(worst)}`, "rank 1"], kl: ["0", `${far.toFixed(1)} nats`] })[at().color];

  const status = () => {
    const { layer, t } = at(), from = settled(t);
    const list = top(layer, t).flatMap(([piece, p], k) => [k ? ", " : "", quoted(piece), ` ${share(p)}`]);
    return [`Layer ${layer}, token ${first + t} `, quoted(tokens[t]), ": ", ...list, ". The text goes on with ", quoted(next(t)),
      `, here at rank ${ranked(layer, t)}${from < L ? `, first from layer ${from} on` : ", never first to the end"}; ${kl(layer, t).toFixed(2)} nats from the last layer.`];
  };
  const tables = () => {
    const { layer, t } = at(), one = ([piece, p]) => [{ token: piece }, p.toFixed(4)];
    const names = range(C).flatMap((k) => [`choice ${k + 1}`, "probability"]);
    return [
      { caption: `Token ${first + t}, layer by layer`, rows: [["layer", "rank of the next token", "nats from the last layer", ...names],
        ...range(L).map((l) => [l, rank(l, t), kl(l, t).toFixed(4), ...top(l, t).flatMap(one)])] },
      { caption: `First choices after layer ${layer}`, rows: [["position", "token", "first choice", "probability", "rank of the next token", "nats from the last layer"],
        ...tokens.map((token, i) => [first + i, { token }, ...one(top(layer, i)[0]), rank(layer, i), kl(layer, i).toFixed(4)])] },
    ];
  };

  const ui = start(model, el, { traits: ["layer", "token", "color"], status, tables });
  const move = (layer, t) => ui.set({ layer, token: first + t });
  slider(ui, "layer", "Layer", 0, L - 1, 1, String);
  slider(ui, "token", "Token", first, first + T - 1, 1, (v) => `${v}, ${visible(tokens[v - first] ?? "")}`);
  choice(ui, "color", "Color shows", COLORS);

  const map = { ...grid(L, T), from: first };
  plot(ui, {
    area: map,
    ramp: ends,
    caption: () => `Layer by position: ${COLORS[at().color]}`,
    label: () => `${L} layers by ${T} tokens, colored by the ${COLORS[at().color]}`,
    draw: (g) => heat(ui, g, map, shown(), String, at().layer, at().t),
    pick: (x, y) => move(...cellAt(map, x, y)),
  });

  // Some columns around the selected one, with text.
  const size = L > 12 ? 17 : 24, close = { x: 56, y: 22, height: L * size + 40, rows: L, size, stride: 1 };
  const columns = () => {
    const n = Math.min(T, Math.max(2, Math.floor(close.width / 82))), begin = Math.min(T - n, Math.max(0, at().t - (n >> 1)));
    return { ...close, height: L * size, columns: n, begin, from: first + begin };
  };
  plot(ui, {
    area: close,
    caption: () => "First choices; above the token that is read, below and in bold the one that comes next",
    label() {
      const { layer, t } = at();
      return `First choices of ${L} layers around token ${first + t}; here ${visible(top(layer, t)[0][0])}`;
    },
    draw(g) {
      const { layer, t } = at(), part = columns(), { x, y, width, height, begin } = part, wide = width / part.columns, value = shown();
      heat(ui, g, part, (l, c) => value(l, begin + c), (l) => `layer ${l}`, layer, t - begin);
      words(g, "reads", x - 5, 10, ui.muted, "right");
      words(g, "next", x - 5, y + height + 27, ui.muted, "right");
      for (let i = begin; i < begin + part.columns; i++) {
        const put = (text, top, color, bold) => {
          g.font = `${bold ? "bold " : ""}12px system-ui, sans-serif`;
          words(g, cut(g, visible(text), wide - 8), x + (i - begin + 0.5) * wide, top, color, "center");
        };
        put(tokens[i], 10, ui.fg);
        for (let l = 0; l < L; l++) put(top(l, i)[0][0], y + (l + 0.5) * size, value(l, i) > 0.47 ? "#000" : "#fff", rank(l, i) === 1);
        put(next(i), y + height + 27, ui.fg, true);
      }
    },
    pick(x, y) {
      const part = columns(), [l, c] = cellAt(part, x, y);
      move(l, part.begin + c);
    },
  });

  const five = { x: 110, y: 4, right: 42, height: C * 24 }, layers = { x: 32, y: 4, right: 104, height: L * Math.min(40, Math.max(13, 120 / L)) };
  plot(ui, {
    half: true,
    area: five,
    caption: () => `Layer ${at().layer}, token ${first + at().t}: the ${C} most probable`,
    label: () => top(at().layer, at().t).map(([piece, p]) => `${visible(piece)} ${percent(p)}`).join(", "),
    draw(g) {
      top(at().layer, at().t).forEach(([piece, p], k) => {
        const y = five.y + 24 * k + 3;
        words(g, cut(g, visible(piece), five.x - 12), five.x - 6, y + 8, ui.fg, "right");
        fill(g, ui.soft, five.x, y, five.width, 17);
        fill(g, ui.accent, five.x, y, Math.max(1, p * five.width), 17);
        words(g, share(p), five.x + five.width + 6, y + 8, ui.fg);
      });
    },
  });
  plot(ui, {
    half: true,
    area: layers,
    caption: () => `Token ${first + at().t}: nats from the last layer, and rank of the next`,
    label: () => range(L).map((l) => `layer ${l}: ${kl(l, at().t).toFixed(2)} nats, rank ${ranked(l, at().t)}`).join("; "),
    draw(g) {
      const { layer, t } = at(), { x, y, width, height } = layers, tall = height / L, most = Math.max(0.1, ...range(L).map((l) => kl(l, t)));
      for (let l = 0; l < L; l++) {
        const middle = y + (l + 0.5) * tall;
        words(g, l, x - 6, middle, ui.muted, "right");
        fill(g, l === layer ? ui.fg : ui.accent, x, y + l * tall + 1, Math.max(1, (kl(l, t) / most) * width), tall - 3);
        words(g, `${kl(l, t).toFixed(1)}, rank ${ranked(l, t)}`, x + width + 6, middle, ui.fg);
      }
    },
    pick: (_, y) => ui.set({ layer: cellAt({ ...layers, rows: L, columns: 1, size: layers.height / L }, 0, y)[0] }),
  });
  const values = () => ((value) => range(T).map((t) => value(at().layer, t)))(shown());
  strip(ui, tokens, values, () => at().t, (t) => ui.set({ token: first + t }));
  return finish(ui,
    "After each block the stream goes through the model's last norm and output head, which were trained for the last block only: what an early layer holds in another form, this lens does not see. " +
    `Ranks and nats are over the whole vocabulary.${first ? ` The first ${first} tokens of the recording are not shown.` : ""}`);
}

// A text, shortened to a width.
function cut(g, text, width) {
  const letters = [...text];
  let n = letters.length;
  while (n && g.measureText(letters.slice(0, n).join("") + (n < letters.length ? "…" : "")).width > width) n--;
  return letters.slice(0, n).join("") + (n < letters.length ? "…" : "");
}

export default { render };
