// One block of MXFP4: what each bit of its 17 bytes does to the 32 numbers that they stand for.

const NUMBERS = [0, 0.5, 1, 1.5, 2, 3, 4, 6]; // of three bits; the fourth is the sign

// The two numbers in a byte of codes, low half first.
function decode(byte, scale) {
  const unit = scale === 255 ? NaN : 2 ** (scale - 127);
  return [byte & 15, byte >> 4].map((code) => (code & 8 ? -1 : 1) * NUMBERS[code & 7] * unit);
}

const short = (v) => (v && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e4) ? v.toExponential(0) : `${+v.toPrecision(3)}`);
const hex = (byte) => byte.toString(16).toUpperCase().padStart(2, "0");
const power = (scale) => (scale === 255 ? "NaN" : `2^${scale - 127}`);

function render({ model, el }) {
  const original = numbers(model, "original", Float32Array), encoded = model.get("encoded"), N = original.length;
  const get = (name) => model.get(name), high = (i) => (i & 1) ^ get("high_first"); // the half that holds weight i
  const byte = (i) => get("codes")[i >> 1], code = (i) => (byte(i) >> (4 * high(i))) & 15;
  const value = (i) => decode(byte(i), get("scale"))[high(i)], error = (i) => value(i) - original[i];
  const row = (i) => [i, `${i >> 1}: 0x${hex(byte(i))}`, high(i) ? "high" : "low", code(i).toString(2).padStart(4, "0"),
    decode(code(i), 127)[0], value(i), original[i], error(i)];

  const status = () => {
    const [i, at, half, bits, number] = row(get("weight")), off = Math.hypot(...range(N).map(error)) / Math.hypot(...original);
    return [`Weight ${i}: byte ${at}, ${half} half ${bits} = ${number}, times ${power(get("scale"))} is ${short(value(i))}. ` +
      `Original ${short(original[i])}, error ${short(error(i))}. The whole block is ${off < 10 ? percent(off) : "far"} off.`];
  };
  const scale = () => `scale byte ${get("scale")} = ${power(get("scale"))}`;
  const tables = () => [{ caption: `Block with ${scale()}`, rows: [
    ["weight", "byte", "half", "code", "code's number", "decoded", "original", "error"], ...range(N).map(row)] }];

  const ui = start(model, el, { traits: ["weight", "codes", "scale", "high_first"], status, tables });
  slider(ui, "weight", "Weight", 0, N - 1, 1, (i) => `${i}, ${short(value(i))}`);
  slider(ui, "scale", "Scale byte", 0, 255, 1, (v) => `${v} = ${power(v)}`);
  checkbox(ui, "high_first", "High half first");
  ui.controls.append(h("div", {}, h("button", { type: "button",
    click: () => ui.set({ codes: encoded.slice(0, -1), scale: encoded[N / 2], high_first: false }) }, "As encoded")));

  const bits = (caption, now, name, toggle) => {
    const words = h("p"), buttons = range(8).map((k) => h("button", { type: "button", click: () => toggle(128 >> k) }));
    ui.controls.after(h("div", { class: "bits", role: "group", "aria-label": caption() }, words, ...buttons));
    ui.updates.push(() => {
      words.textContent = caption();
      buttons.forEach((button, k) => {
        const on = !!(now() & (128 >> k));
        button.setAttribute("aria-pressed", on);
        button.replaceChildren(on ? "1" : "0", h("small", {}, name(k)));
      });
    });
  };
  bits(() => `Bits of the ${scale()}`, () => get("scale"), (k) => 128 >> k, (bit) => ui.set({ scale: get("scale") ^ bit }));
  bits(() => `Bits of byte ${get("weight") >> 1}, high half and low half`, () => byte(get("weight")),
    (k) => ["sign", "exp.", "exp.", "mant."][k % 4],
    (bit) => ui.set({ codes: get("codes").map((b, k) => (k === get("weight") >> 1 ? b ^ bit : b)) }));

  // As bytes are written: the high half at the left.
  const cells = { x: 1, y: 2, height: 160, rows: 4, columns: 8, size: 40 }, at = (cell) => cell ^ !get("high_first");
  plot(ui, {
    half: true,
    area: cells,
    caption: () => `16 bytes of two codes, ${scale()}`,
    label: () => `The bytes: ${get("codes").map(hex).join(" ")}`,
    draw(g) {
      const wide = cells.width / 8;
      g.textAlign = "center";
      for (const cell of range(N)) {
        const i = at(cell), x = cells.x + (cell % 8) * wide, y = cells.y + (cell >> 3) * 40, mine = i >> 1 === get("weight") >> 1;
        g.fillStyle = mine ? ui.soft : ui.bg;
        g.fillRect(x, y, wide, 36);
        g.fillStyle = ui.line;
        g.fillRect(x + (cell % 2 ? 0 : 4), y + 36, wide - 4, 1.5);
        g.fillStyle = ui.fg;
        g.fillText(`${hex(code(i))[1]}`, x + wide * 0.7, y + 11);
        g.fillText(short(value(i)), x + wide / 2, y + 26);
        g.fillStyle = ui.muted;
        g.fillText(`w${i}`, x + wide * 0.3, y + 11);
        if (i === get("weight")) frame(g, x + 2, y + 2, wide - 4, 32);
      }
    },
    pick(x, y) {
      const [row, column] = cellAt(cells, x, y);
      ui.set({ weight: at(8 * row + column) });
    },
  });

  // The axis stays where the encoded scale has it, so that a shift is seen.
  const end = 8 * 2 ** (encoded[N / 2] - 127), area = { x: 50, y: 8, height: 220, rows: 1, columns: N, size: 1, stride: 1 };
  const yOf = (v) => area.y + (0.5 - Math.max(-end, Math.min(end, v)) / end / 2) * area.height;
  plot(ui, {
    half: true,
    area,
    caption: () => "Original (ring), decoded (bar), and all numbers of this scale (lines)",
    label: () => `${N} weights; the largest error is ${short(Math.max(...range(N).map((i) => Math.abs(error(i)))))}`,
    draw(g) {
      const wide = area.width / N, block = (color, x, y, w, h) => ((g.fillStyle = ui[color]), g.fillRect(x, y, w, h));
      let last = 0;
      g.textAlign = "right";
      for (const number of [6, 4, 3, 2, 1.5, 1, 0.5, 0, -0.5, -1, -1.5, -2, -3, -4, -6]) {
        const v = number * decode(2, get("scale"))[0], y = yOf(v);
        if (!(Math.abs(v) < end)) continue;
        block("line", area.x, y, area.width, 1);
        if (y - last < 13) continue;
        g.fillStyle = ui.muted;
        g.fillText(short(v), area.x - 5, (last = y));
      }
      ticks(g, area);
      g.strokeStyle = ui.fg;
      for (const i of range(N)) {
        const v = value(i), x = area.x + (i + 0.5) * wide, from = yOf(original[i]), to = yOf(v);
        block("muted", x - 0.5, from, 1, to - from);
        block("accent", x - wide * 0.4, to - 1.5, wide * 0.8, 3);
        if (Math.abs(v) > end) g.fillText(v > 0 ? "▲" : "▼", x, to);
        g.beginPath();
        g.arc(x, from, 2.6, 0, 7);
        g.stroke();
      }
      frame(g, area.x + get("weight") * wide, area.y, wide, area.height);
    },
    pick: (x, y) => ui.set({ weight: cellAt(area, x, y)[1] }),
  });
  return finish(ui, "Right: the low half of a byte first. A triangle: beyond the axis. Scale byte 255 stands for no number (NaN).");
}

export default { render };
