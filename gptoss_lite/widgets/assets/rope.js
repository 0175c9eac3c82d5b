// RoPE and YaRN: which pairs are slowed, and where the hands of all pairs stand at a distance.

const TURN = 2 * Math.PI;

// The ramp's ends, and each pair's ramp and angles per token, as in positions.py.
function rotations({ head_dim, theta, beta_fast, beta_slow, factor, original_context, truncate }) {
  const half = head_dim / 2, pair = (turns) => (half * Math.log(original_context / (turns * TURN))) / Math.log(theta);
  let [low, high] = [pair(beta_fast), pair(beta_slow)];
  if (truncate) [low, high] = [Math.floor(low), Math.ceil(high)];
  [low, high] = [Math.max(low, 0), Math.min(high, head_dim - 1)];
  if (low === high) high += 0.001;
  return range(half).map((i) => {
    const ramp = factor > 1 ? clamp((i - low) / (high - low), 0, 1) : 0, plain = theta ** (-i / half);
    return { ramp, plain, yarn: (plain / factor) * ramp + plain * (1 - ramp), zone: factor > 1 ? ["kept", "blended", "slowed"][Math.ceil(ramp) + (ramp === 1)] : "plain" };
  });
}

const turns = (x) => `${x < 10 ? +x.toPrecision(2) : count(Math.round(x))} turn${x === 1 ? "" : "s"}`;
const tokens = (n) => `${count(Math.round(n))} tokens`;

function render({ model, el }) {
  const ui = start(model, el), { now } = ui, N = now.head_dim / 2;
  const pairs = cached(() => [now.factor, now.original_context, now.truncate], () => rotations(now));
  // A pair that has not been all around within the original context knows only a part of its circle.
  const known = (i) => Math.min(TURN, now.original_context * pairs()[i].plain * (1 + 1e-9));
  const isNew = (i, kind) => (now.distance * pairs()[i][kind]) % TURN > known(i);
  const news = (kind) => range(N).filter((i) => isNew(i, kind)).length;

  slider(ui, "pair", "Pair", N - 1, (i) => `${i}, ${pairs()[i].zone}`);
  steps(ui, "distance", "Distance", [0, ...lengths(2 ** 20, 6)], tokens);
  slider(ui, "factor", "Factor", 64, (v) => (v === 1 ? "1, plain RoPE" : String(v)), { min: 1 });
  steps(ui, "original_context", "Original context", range(10).map((k) => 256 << k), tokens);
  checkbox(ui, "truncate", "Round the ramp's ends");

  const area = { x: 42, y: 4, height: 218, columns: N };
  plot(ui, {
    half: true,
    area,
    caption: () => "Tokens a turn: RoPE (square), YaRN (dot)",
    label: () => `${pairs().filter(({ zone }) => zone === "slowed").length} of ${N} pairs are slowed`,
    draw(pen) {
      const { x, y, width, height } = area, top = Math.log10((64 * TURN) / pairs()[N - 1].plain), wide = width / N;
      const yOf = (n) => y + height * (1 - Math.log10(n / 3) / top);
      pairs().forEach(({ zone }, i) => zone === "blended" && pen.fill("soft", x + i * wide, y, wide + 1, height));
      for (let e = 1; e < top; e++) pen.level(yOf(10 ** e), e < 3 ? 10 ** e : `${10 ** (e % 3)}${" kMG"[Math.floor(e / 3)]}`);
      pen.ticks();
      for (const n of [now.original_context, now.original_context * now.factor]) {
        pen.fill("fg", x, yOf(n), width, 1.5);
        pen.words(tokens(n), x + 4, yOf(n) - 8);
      }
      pairs().forEach(({ plain, yarn }, i) => {
        const middle = x + (i + 0.5) * wide;
        pen.fill("muted", middle - 2.5, yOf(TURN / plain) - 2.5, 5, 5);
        pen.circle(middle, yOf(TURN / yarn), 3, "accent");
      });
      pen.frame(x + now.pair * wide, y, wide, height);
    },
    pick: (_, pair) => ui.set({ pair }),
  });

  const rows = Math.ceil(N / 8), dials = { x: 2, y: 4, height: rows * 54, rows, columns: 8 };
  plot(ui, {
    half: true,
    area: dials,
    caption: () => `Hands at distance ${count(now.distance)}; filled: known angles`,
    label: () => `At angles never met: ${news("plain")} of ${N} with RoPE, ${news("yarn")} with YaRN`,
    draw(pen) {
      const { g } = pen, wide = dials.width / 8, r = Math.min(19, wide / 2 - 3);
      for (const i of range(N)) {
        const left = dials.x + (i % 8) * wide, top = dials.y + (i >> 3) * 54, x = left + wide / 2, y = top + 31;
        pen.circle(x, y, r, "", "line");
        g.beginPath();
        g.moveTo(x, y);
        g.arc(x, y, r, 0, -known(i), true);
        g.fillStyle = ui.colors.line;
        g.fill();
        for (const [kind, ...style] of [["plain", "fg", [3, 2]], ["yarn", "accent"]]) {
          const angle = now.distance * pairs()[i][kind];
          pen.line([[x, y], [x + r * Math.cos(angle), y - r * Math.sin(angle)]], ...style);
        }
        pen.words(`${i}${isNew(i, "plain") ? " ✱" : ""}`, x, top + 5, "muted", "center");
        if (i === now.pair) pen.frame(left + 2, top - 2, wide - 4, 53);
      }
    },
    pick: (down, right) => ui.set({ pair: Math.min(N - 1, 8 * down + right) }),
  });

  const status = () => {
    const { pair, distance } = now, { plain, yarn, zone } = pairs()[pair], scores = (0.1 * Math.log(now.factor) + 1) ** 2;
    return [`Pair ${pair}, ${zone}: a turn takes ${tokens(TURN / plain)} with RoPE, ${count(Math.round(TURN / yarn))} with YaRN. At distance ${count(distance)}: ` +
      `${turns((distance * plain) / TURN)} and ${turns((distance * yarn) / TURN)}. At angles never met in ${tokens(now.original_context)}: ${news("plain")} of ${N} pairs with RoPE, ` +
      `${news("yarn")} with YaRN. YaRN multiplies scores by ${scores.toFixed(2)}.`];
  };
  const head = ["pair", "zone", "ramp", "RoPE: angle per token", "YaRN: angle per token", "RoPE: tokens a turn", "YaRN: tokens a turn"];
  const tables = () => [table(`Pairs with factor ${now.factor}`, head, N, (i) => {
    const { zone, ramp, plain, yarn } = pairs()[i];
    return [i, zone, ramp, plain, yarn, TURN / plain, TURN / yarn];
  })];
  return finish(ui, { status, tables, note: "Dashed: RoPE, solid: YaRN; angle 0 is at the right. Filled is what a hand went through within the original context, without YaRN. " +
    "✱ marks a hand of RoPE outside of it." });
}

export default { render };
