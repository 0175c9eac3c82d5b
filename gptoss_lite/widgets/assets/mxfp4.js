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
  const original = numbers(model, "original", Float32Array), encoded = model.get("encoded"), N = 32;
  const get = (name) => model.get(name), high = (i) => (i & 1) ^ get("high_first"); // the half that holds weight i
  const byte = (i) => get("codes")[i >> 1], code = (i) => (byte(i) >> (4 * high(i))) & 15;
  const value = (i) => decode(byte(i), get("scale"))[high(i)], error = (i) => value(i) - original[i];
  const row = (i) => [i, i >> 1, hex(byte(i)), high(i) ? "high" : "low", code(i).toString(2).padStart(4, "0"),
    decode(code(i), 127)[0], value(i), original[i], error(i)];
  const scale = () => `scale byte ${get("scale")} = ${power(get("scale"))}`;

  const status = () => {
    const [i, k, digits, half, bits, number] = row(get("weight")), off = Math.hypot(...range(N).map(error)) / Math.hypot(...original);
    return [`Weight ${i} is the ${half} half of byte ${k}, 0x${digits}: code ${bits} = ${short(number)}, times ${power(get("scale"))} is ${short(value(i))}. ` +
      `Original ${short(original[i])}, error ${short(error(i))}. The whole block is ${off < 10 ? percent(off) : "far"} off.`];
  };
  const head = ["weight", "byte", "as hexadecimal", "half", "code", "code's number", "decoded", "original", "error"];
  const tables = () => [{ caption: `Block with ${scale()}`, rows: [head, ...range(N).map(row)] }];

  const ui = start(model, el, { traits: ["weight", "codes", "scale", "high_first"], status, tables });
  slider(ui, "weight", "Weight", 0, N - 1, 1, (i) => `${i}, ${short(value(i))}`);
  slider(ui, "scale", "Scale byte", 0, 255, 1, (v) => `${v} = ${power(v)}`);
  checkbox(ui, "high_first", "High half first");
  ui.controls.append(h("div", {}, h("button", { type: "button",
    click: () => ui.set({ codes: encoded.slice(0, -1), scale: encoded[16], high_first: false }) }, "As encoded")));

  const bits = (caption, now, names, toggle) => {
    const words = h("p"), buttons = range(8).map((k) => h("button", { type: "button", click: () => toggle(128 >> k) }));
    ui.figures.append(h("div", { class: "half bits", role: "group", "aria-label": caption() }, words, ...buttons));
    ui.updates.push(() => {
      words.textContent = caption();
      buttons.forEach((button, k) => {
        const on = (now() >> (7 - k)) & 1;
        button.setAttribute("aria-pressed", !!on);
        button.replaceChildren(on, h("small", {}, names[k]));
      });
    });
  };
  bits(() => `Byte ${get("weight") >> 1}: high half, low half`, () => byte(get("weight")), [..."seemseem"],
    (bit) => ui.set({ codes: get("codes").map((b, k) => (k === get("weight") >> 1 ? b ^ bit : b)) }));
  bits(() => `The ${scale()}`, () => get("scale"), range(8).map((k) => 128 >> k), (bit) => ui.set({ scale: get("scale") ^ bit }));

  // As bytes are written: the high half at the left.
  const cells = { x: 1, y: 2, height: 200, rows: 4, columns: 8, size: 50 }, at = (cell) => cell ^ !get("high_first");
  plot(ui, {
    half: true,
    area: cells,
    caption: () => "16 bytes, a code in each half",
    label: () => `The bytes: ${get("codes").map(hex).join(" ")}`,
    draw(g) {
      const wide = cells.width / 8;
      g.textAlign = "center";
      for (const cell of range(N)) {
        const i = at(cell), x = cells.x + (cell % 8) * wide, y = cells.y + (cell >> 3) * 50;
        const text = (color, words, down) => ((g.fillStyle = ui[color]), g.fillText(words, x + wide * 0.52, y + down));
        g.fillStyle = ui.soft;
        g.fillRect(x + (cell % 2 ? 0 : 4), y, wide - 4, 46);
        text("fg", hex(code(i))[1], 9);
        text("fg", short(value(i), 2).replace("0.", "."), 23);
        text("muted", `w${i}`, 37);
        if (i === get("weight")) frame(g, x + 3, y + 3, wide - 6, 40);
      }
    },
    pick(x, y) {
      const [down, right] = cellAt(cells, x, y);
      ui.set({ weight: at(8 * down + right) });
    },
  });

  // The axis stays where the encoded scale has it, so that a shift is seen.
  const end = 8 * 2 ** (encoded[16] - 127), area = { x: 46, y: 3, height: 220, rows: 1, columns: N, size: 1, stride: 1 };
  const yOf = (v) => area.y + (0.5 - Math.max(-end, Math.min(end, v)) / end / 2) * area.height;
  plot(ui, {
    half: true,
    area,
    caption: () => "Original (ring), decoded (bar); lines: numbers of this scale",
    label: () => `Original and decoded weights at ${scale()}`,
    draw(g) {
      const wide = area.width / N, box = (color, x, y, w, h) => ((g.fillStyle = ui[color]), g.fillRect(x, y, w, h));
      let last = -13;
      g.textAlign = "right";
      for (const v of range(15).map((k) => decode(k < 7 ? 7 - k : k + 1, get("scale"))[0])) {
        const y = yOf(v);
        if (!(Math.abs(v) < end)) continue;
        box("line", area.x, y, area.width, 1);
        if (y - last >= 13) (g.fillStyle = ui.muted), g.fillText(short(v), area.x - 5, (last = y));
      }
      ticks(g, area);
      g.strokeStyle = ui.fg;
      for (const i of range(N)) {
        const v = value(i), x = area.x + (i + 0.5) * wide, from = yOf(original[i]), to = yOf(v);
        box("muted", x - 0.5, from, 1, to - from);
        box("accent", x - wide * 0.4, to - 1.5, wide * 0.8, 3);
        if (Math.abs(v) > end) g.fillText(v > 0 ? "▲" : "▼", x, to + (v > 0 ? 6 : -6));
        g.beginPath();
        g.arc(x, from, 2.6, 0, 7);
        g.stroke();
      }
      frame(g, area.x + get("weight") * wide, area.y, wide, area.height);
    },
    pick: (x, y) => ui.set({ weight: cellAt(area, x, y)[1] }),
  });
  return finish(ui, "s: sign, e: exponent, m: mantissa. Right is to read the low half first. Triangles are beyond the axis.");
}

export default { render };
