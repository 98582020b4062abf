// Curves as an SVG, on white as the book's figures are.

const WIDTH = 340, HEIGHT = 220, LEFT = 46, BOTTOM = 34, TOP = 26, RIGHT = 12;

// curves: name -> { y, color }, y a value for each of 1 .. T. range: the least and the greatest y
// that are shown; log: on a logarithmic axis. Their names stand at `names`, from the top; `mark` is
// a step to point at.
export function plot(title, curves, { range, ticks, log = false, names = TOP + 12, mark }) {
  const T = Object.values(curves)[0].y.length, f = log ? Math.log10 : v => v;
  const [low, high] = range.map(f);
  const px = t => LEFT + (WIDTH - LEFT - RIGHT) * (t - 1) / Math.max(T - 1, 1);
  const py = v => {
    const share = (f(v) - low) / (high - low);
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * Math.min(Math.max(share, 0), 1);
  };
  const text = (x, y, words, anchor = "middle", more = "") =>
    `<text x="${x}" y="${y}" text-anchor="${anchor}" ${more}>${words}</text>`;
  const line = (x1, y1, x2, y2, color, width = 1) =>
    `<path d="M${x1} ${y1}L${x2} ${y2}" stroke="${color}" stroke-width="${width}" fill="none"/>`;
  const parts = [text(LEFT, 16, title, "start", 'font-weight="bold"')];
  for (const v of ticks) {
    parts.push(line(LEFT, py(v), WIDTH - RIGHT, py(v), "#e3e3e3"));
    parts.push(text(LEFT - 5, py(v) + 4, v, "end"));
  }
  parts.push(text(px(1), HEIGHT - 18, 1), text(px(T), HEIGHT - 18, T, "end"));
  parts.push(text((LEFT + WIDTH) / 2, HEIGHT - 6, "step t"));
  if (mark) parts.push(line(px(mark), TOP, px(mark), HEIGHT - BOTTOM, "#8c8c8c"));
  Object.entries(curves).forEach(([name, { y, color }], i) => {
    const path = Array.from(y, (v, k) => `${px(k + 1).toFixed(1)} ${py(v).toFixed(1)}`);
    parts.push(`<path d="M${path.join("L")}" stroke="${color}" stroke-width="1.8" fill="none"/>`);
    const at = names + 14 * i;       // its name is black: the curve's colour is too pale to read
    parts.push(line(WIDTH - RIGHT - 14, at - 4, WIDTH - RIGHT, at - 4, color, 1.8));
    parts.push(text(WIDTH - RIGHT - 19, at, name, "end"));
  });
  const said = `${title}: ${Object.keys(curves).join(", ")}, for steps 1 to ${T}`;
  return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${said}">` +
    `${parts.join("")}</svg>`;
}
