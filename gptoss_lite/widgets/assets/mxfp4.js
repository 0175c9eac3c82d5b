// One block of MXFP4: what each bit of its 17 bytes does to the 32 numbers that they stand for.

const NUMBERS = [0, 0.5, 1, 1.5, 2, 3, 4, 6]; // of three bits; the fourth is the sign

// The two numbers in a byte of codes, low half first.
function decode(byte, scale) {
  const unit = scale === 255 ? NaN : 2 ** (scale - 127);
  return [byte & 15, byte >> 4].map((code) => (code & 8 ? -1 : 1) * NUMBERS[code & 7] * unit);
}

const short = (v, digits = 3) => String(+v.toPrecision(digits)).replace("-", "−");
const hex = (byte) => byte.toString(16).toUpperCase().padStart(2, "0");
const power = (scale) => (scale === 255 ? "no number" : `2^${short(scale - 127)}`);

function render({ model, el }) {
  const ui = start(model, el), { now } = ui, { encoded } = now, original = numbers(ui, "original", Float32Array), N = 32;
  const high = (i) => (i & 1) ^ now.high_first; // the half that holds weight i
  const byte = (i) => now.codes[i >> 1], code = (i) => (byte(i) >> (4 * high(i))) & 15;
  const value = (i) => decode(byte(i), now.scale)[high(i)], error = (i) => value(i) - original[i];
  const row = (i) => [i, i >> 1, hex(byte(i)), high(i) ? "high" : "low", code(i).toString(2).padStart(4, "0"),
    decode(code(i), 127)[0], value(i), original[i], error(i)];
  const scale = () => `scale byte ${now.scale} = ${power(now.scale)}`;

  slider(ui, "weight", "Weight", N - 1, (i) => `${i}, ${short(value(i))}`);
  slider(ui, "scale", "Scale byte", 255, (v) => `${v} = ${power(v)}`);
  checkbox(ui, "high_first", "High half first");
  ui.controls.append(h("div", {},
    button(() => ui.set({ codes: encoded.slice(0, -1), scale: encoded[16], high_first: false }), "As encoded")));

  const bits = (caption, current, names, toggle) => {
    const title = h("p"), buttons = range(8).map((k) => button(() => toggle(128 >> k)));
    ui.figures.append(h("div", { class: "half bits", role: "group", "aria-label": caption() }, title, ...buttons));
    ui.updates.push(() => {
      say(title, caption());
      buttons.forEach((button, k) => {
        const on = (current() >> (7 - k)) & 1;
        button.setAttribute("aria-pressed", !!on);
        button.replaceChildren(on, h("small", {}, names[k]));
      });
    });
  };
  bits(() => `Byte ${now.weight >> 1}: high half, low half`, () => byte(now.weight), [..."seemseem"],
    (bit) => ui.set({ codes: now.codes.map((b, k) => (k === now.weight >> 1 ? b ^ bit : b)) }));
  bits(() => `The ${scale()}`, () => now.scale, range(8).map((k) => 128 >> k), (bit) => ui.set({ scale: now.scale ^ bit }));

  // As bytes are written: the high half at the left.
  const cells = { x: 1, y: 2, height: 200, rows: 4, columns: 8 }, at = (cell) => cell ^ !now.high_first;
  plot(ui, {
    half: true,
    area: cells,
    caption: () => `16 bytes, a code in each half; numbers times ${power(now.scale)}`,
    label: () => now.codes.map(hex).join(" "),
    draw(pen) {
      const wide = cells.width / 8;
      for (const cell of range(N)) {
        const i = at(cell), x = cells.x + (cell % 8) * wide, y = cells.y + (cell >> 3) * 50;
        pen.fill("soft", x + (cell % 2 ? 0 : 4), y, wide - 4, 46);
        [hex(code(i))[1], short(decode(code(i), 127)[0]), `w${i}`].forEach((words, k) =>
          pen.words(words, x + wide * 0.52, y + 9 + 14 * k, k < 2 ? "fg" : "muted", "center"));
        if (i === now.weight) pen.frame(x + 3, y + 3, wide - 6, 40);
      }
    },
    pick: (down, right) => ui.set({ weight: at(8 * down + right) }),
  });

  // The axis stays where the encoded scale has it, so that a shift is seen.
  const end = 8 * 2 ** (encoded[16] - 127), area = { x: 32, y: 3, height: 220, columns: N };
  const yOf = (v) => area.y + (0.5 - clamp(v, -end, end) / end / 2) * area.height;
  plot(ui, {
    half: true,
    area,
    caption: () => `Original (ring), decoded (bar); lines: numbers times ${power(now.scale)}`,
    draw(pen) {
      const wide = area.width / N;
      let last = -13;
      for (const code of range(15).map((k) => (k < 7 ? 7 - k : k + 1))) {
        const [v] = decode(code, now.scale), y = yOf(v), apart = y - last >= 13;
        if (!(Math.abs(v) < end)) continue;
        pen.level(y, apart ? short(decode(code, 127)[0]) : "");
        if (apart) last = y;
      }
      pen.ticks();
      for (const i of range(N)) {
        const v = value(i), x = area.x + (i + 0.5) * wide, from = yOf(original[i]), to = yOf(v);
        pen.fill("muted", x - 0.5, from, 1, to - from);
        pen.fill("accent", x - wide * 0.4, to - 1.5, wide * 0.8, 3);
        if (Math.abs(v) > end) pen.words(v > 0 ? "▲" : "▼", x, to + (v > 0 ? 6 : -6), "accent", "center");
        pen.circle(x, from, 2.6, "", "fg");
      }
      pen.frame(area.x + now.weight * wide, area.y, wide, area.height);
    },
    pick: (_, weight) => ui.set({ weight }),
  });

  const status = () => {
    const [i, k, digits, half, bits, number] = row(now.weight), off = Math.hypot(...range(N).map(error)) / Math.hypot(...original);
    return [`Weight ${i} is the ${half} half of byte ${k}, 0x${digits}: code ${bits} = ${short(number)}, times ${power(now.scale)} is ${short(value(i))}. ` +
      `Original ${short(original[i])}, error ${short(error(i))}. The whole block is ${off < 10 ? percent(off) : "far"} off.`];
  };
  const head = ["weight", "byte", "as hexadecimal", "half", "code", "code's number", "decoded", "original", "error"];
  return finish(ui, { status, tables: () => [table(`Block with ${scale()}`, head, N, row)],
    note: "s: sign, e: exponent, m: mantissa. Right is to read the low half first. Triangles are beyond the axis." });
}

export default { render };
