// RoPE and YaRN: which pairs are slowed, and where the hands of all pairs stand at a distance.

// The ramp's ends, and each pair's ramp and angles per token, as in positions.py.
function rotations({ head_dim, theta, beta_fast, beta_slow, factor, original_context, truncate }) {
  const half = head_dim / 2, pair = (turns) => (half * Math.log(original_context / (turns * 2 * Math.PI))) / Math.log(theta);
  let [low, high] = [pair(beta_fast), pair(beta_slow)];
  if (truncate) [low, high] = [Math.floor(low), Math.ceil(high)];
  [low, high] = [Math.max(low, 0), Math.min(high, head_dim - 1)];
  if (low === high) high += 0.001;
  return range(half).map((i) => {
    const ramp = Math.min(1, Math.max(0, (i - low) / (high - low))), plain = theta ** (-i / half);
    return { ramp, plain, yarn: (plain / factor) * ramp + plain * (1 - ramp), zone: ["kept", "blended", "slowed"][Math.ceil(ramp) + (ramp === 1)] };
  });
}

const TURN = 2 * Math.PI;
const turns = (x) => `${x < 10 ? +x.toPrecision(2) : count(Math.round(x))} turn${x === 1 ? "" : "s"}`;

function render({ model, el }) {
  const names = ["head_dim", "theta", "beta_fast", "beta_slow", "factor", "original_context", "truncate"], N = model.get("head_dim") / 2;
  const get = (name) => model.get(name), traits = ["pair", "distance", ...names.slice(4)];
  let pairs, made;
  const all = () => {
    const values = names.map(get), key = String(values);
    if (made !== key) pairs = rotations(Object.fromEntries(names.map((name, k) => [name, values[k]])));
    return (made = key), pairs;
  };
  // A pair that has not been all around within the original context knows only a part of its circle.
  const known = (i) => Math.min(TURN, get("original_context") * all()[i].plain * (1 + 1e-9));
  const isNew = (i, kind) => (get("distance") * all()[i][kind]) % TURN > known(i);
  const news = (kind) => range(N).filter((i) => isNew(i, kind)).length;
  const tokens = (speed) => count(Math.round(TURN / speed));

  const status = () => {
    const i = get("pair"), d = get("distance"), { plain, yarn, zone } = all()[i], scores = (0.1 * Math.log(get("factor")) + 1) ** 2;
    return [`Pair ${i}, ${zone}: a turn takes ${tokens(plain)} tokens with RoPE, ${tokens(yarn)} with YaRN. At distance ${count(d)}: ` +
      `${turns((d * plain) / TURN)} and ${turns((d * yarn) / TURN)}. At angles never met in ${count(get("original_context"))} tokens: ${news("plain")} of ${N} pairs with RoPE, ` +
      `${news("yarn")} with YaRN. YaRN multiplies scores by ${scores.toFixed(2)}.`];
  };
  const tables = () => [{ caption: `Pairs with factor ${get("factor")}`, rows: [
    ["pair", "zone", "ramp", "RoPE: angle per token", "YaRN: angle per token", "RoPE: tokens a turn", "YaRN: tokens a turn"],
    ...all().map(({ zone, ramp, plain, yarn }, i) => [i, zone, ramp, plain, yarn, TURN / plain, TURN / yarn])] }];

  const ui = start(model, el, { traits, status, tables });
  const contexts = range(10).map((k) => 256 << k);
  slider(ui, "pair", "Pair", 0, N - 1, 1, (i) => `${i}, ${all()[i].zone}`);
  steps(ui, "distance", "Distance", [0, ...lengths(2 ** 20, 6)], (d) => `${count(d)} tokens`);
  slider(ui, "factor", "Factor", 1, 64, 1, (v) => (v === 1 ? "1, plain RoPE" : String(v)));
  steps(ui, "original_context", "Original context", contexts, (n) => `${count(n)} tokens`);
  checkbox(ui, "truncate", "Round the ramp's ends");

  const area = { x: 42, y: 4, height: 218, rows: 1, columns: N, size: 1, stride: 1 };
  plot(ui, {
    half: true,
    area,
    caption: () => "Tokens a turn: RoPE (square), YaRN (dot)",
    label: () => `Tokens for a turn of ${N} pairs; ${all().filter(({ zone }) => zone === "slowed").length} are slowed`,
    draw(g) {
      const top = Math.log10((64 * TURN) / all()[N - 1].plain), wide = area.width / N, { x, y, width, height } = area;
      const yOf = (n) => y + height * (1 - Math.log10(n / 3) / top), box = (color, ...place) => ((g.fillStyle = ui[color]), g.fillRect(...place));
      all().forEach(({ zone }, i) => zone === "blended" && box("soft", x + i * wide, y, wide + 1, height));
      for (let e = 1; e < top; e++) {
        box("line", x, yOf(10 ** e), width, 1);
        g.fillStyle = ui.muted;
        g.textAlign = "right";
        g.fillText(e < 3 ? 10 ** e : `${10 ** (e % 3)}${" kMG"[Math.floor(e / 3)]}`, x - 5, yOf(10 ** e));
      }
      ticks(g, area);
      g.textAlign = "left";
      for (const n of [get("original_context"), get("original_context") * get("factor")]) {
        box("fg", x, yOf(n), width, 1.5);
        g.fillText(`${count(n)} tokens`, x + 4, yOf(n) - 8);
      }
      all().forEach(({ plain, yarn }, i) => {
        const middle = x + (i + 0.5) * wide;
        box("muted", middle - 2.5, yOf(TURN / plain) - 2.5, 5, 5);
        g.fillStyle = ui.accent;
        g.beginPath();
        g.arc(middle, yOf(TURN / yarn), 3, 0, 7);
        g.fill();
      });
      frame(g, x + get("pair") * wide, y, wide, height);
    },
    pick: (x, y) => ui.set({ pair: cellAt(area, x, y)[1] }),
  });

  const rows = Math.ceil(N / 8), dials = { x: 2, y: 4, height: rows * 54, rows, columns: 8, size: 54 };
  plot(ui, {
    half: true,
    area: dials,
    caption: () => `Hands at distance ${count(get("distance"))}; filled: known angles`,
    label: () => `Hands of ${N} pairs; at angles never met: ${news("plain")} with RoPE, ${news("yarn")} with YaRN`,
    draw(g) {
      const wide = dials.width / 8, r = Math.min(19, wide / 2 - 3);
      range(N).forEach((i) => {
        const left = dials.x + (i % 8) * wide, top = dials.y + (i >> 3) * 54, [x, y] = [left + wide / 2, top + 31];
        g.fillStyle = g.strokeStyle = ui.line;
        g.lineWidth = 1;
        g.beginPath();
        g.arc(x, y, r, 0, 7);
        g.stroke();
        g.beginPath();
        g.moveTo(x, y);
        g.arc(x, y, r, 0, -known(i), true);
        g.fill();
        for (const [kind, color, dash] of [["plain", "fg", [3, 2]], ["yarn", "accent", []]]) {
          const angle = get("distance") * all()[i][kind];
          g.strokeStyle = ui[color];
          g.lineWidth = 2;
          g.setLineDash(dash);
          g.beginPath();
          g.moveTo(x, y);
          g.lineTo(x + r * Math.cos(angle), y - r * Math.sin(angle));
          g.stroke();
        }
        g.setLineDash([]);
        g.fillStyle = ui.muted;
        g.textAlign = "center";
        g.fillText(`${i}${isNew(i, "plain") ? " ✱" : ""}`, x, top + 5);
        if (i === get("pair")) frame(g, left + 2, top - 2, wide - 4, 53);
      });
    },
    pick(x, y) {
      const [down, right] = cellAt(dials, x, y);
      ui.set({ pair: Math.min(N - 1, 8 * down + right) });
    },
  });
  return finish(ui, "Dashed: RoPE, solid: YaRN; angle 0 is at the right. Filled is what a hand went through within the original context, without YaRN. " +
    "✱ marks a hand of RoPE outside of it.");
}

export default { render };
