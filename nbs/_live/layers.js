// What the U-Net of chapter 6 is made of. A feature map is { c, size, data }: c channels of
// size x size pixels, channel after channel, in single precision.

const feature = (c, size, data = new Float32Array(c * size * size)) => ({ c, size, data });

export const silu = v => v.map(u => u / (1 + Math.exp(-u)));
export const siluMap = x => feature(x.c, x.size, silu(x.data));

export const add = (x, y) => feature(x.c, x.size, x.data.map((u, i) => u + y.data[i]));

export function concat(x, y) {
  const out = feature(x.c + y.c, x.size);
  out.data.set(x.data);
  out.data.set(y.data, x.data.length);
  return out;
}

const places = (count, where) => new Int32Array(count).map((_, i) => where(i));

// (m, k) times (k, n), n a multiple of 4; entry (j, p) of the second is b[rows[j] + columns[p]].
// Nearly all the time is spent here. Four columns are cut out, side by side; then eight sums at
// once, of two rows and four columns, need six numbers for eight products; one needs sixteen.
function product(a, b, rows, columns, bias) {
  const m = bias.length, k = rows.length, n = columns.length;
  const out = new Float32Array(m * n), cut = new Float64Array(4 * k);
  for (let p = 0; p < n; p += 4) {
    const c0 = columns[p], c1 = columns[p + 1], c2 = columns[p + 2], c3 = columns[p + 3];
    for (let j = 0, q = 0; j < k; j++, q += 4) {
      const r = rows[j];
      cut[q] = b[r + c0]; cut[q + 1] = b[r + c1]; cut[q + 2] = b[r + c2]; cut[q + 3] = b[r + c3];
    }
    for (let i = 0; i < m; i += 2) {
      const second = Math.min(i + 1, m - 1);        // an odd last row is computed twice
      let s0 = bias[i], s1 = s0, s2 = s0, s3 = s0, r0 = bias[second], r1 = r0, r2 = r0, r3 = r0;
      for (let j = 0, u = i * k, v = second * k, q = 0; j < k; j++, u++, v++, q += 4) {
        const w = a[u], z = a[v];
        const b0 = cut[q], b1 = cut[q + 1], b2 = cut[q + 2], b3 = cut[q + 3];
        s0 += w * b0; s1 += w * b1; s2 += w * b2; s3 += w * b3;
        r0 += z * b0; r1 += z * b1; r2 += z * b2; r3 += z * b3;
      }
      const o = i * n + p, l = second * n + p;
      out[o] = s0; out[o + 1] = s1; out[o + 2] = s2; out[o + 3] = s3;
      out[l] = r0; out[l + 1] = r1; out[l + 2] = r2; out[l + 3] = r3;
    }
  }
  return out;
}

export const matmul = (a, b, m, k, n, bias = new Float32Array(m)) =>
  product(a, b, places(k, j => j * n), places(n, p => p), bias);

// An image in a frame of zeros, `before` of them at its top and left and one at the other sides.
function framed(x, before) {
  const side = before + x.size + 1, out = feature(x.c, side);
  for (let row = 0; row < x.c * x.size; row++) {          // rows of all channels, counted through
    const c = row / x.size | 0, to = (c * side + row % x.size + before) * side + before;
    for (let i = 0; i < x.size; i++) out.data[to + i] = x.data[row * x.size + i];
  }
  return out;
}

export function upsampled(x) {   // each pixel four times
  const out = feature(x.c, 2 * x.size), side = out.size;
  for (let i = 0; i < out.data.length; i++) {
    const row = i / side | 0, column = i % side;          // rows of all channels, counted through
    out.data[i] = x.data[(row >> 1) * x.size + (column >> 1)];
  }
  return out;
}

// The layers by the names that their weights have in the file.
export function layers(weights, groups) {
  const of = name => [weights[`${name}.weight`], weights[`${name}.bias`]];
  return {
    has: name => `${name}.weight` in weights,
    linear(name, v) {
      const [w, bias] = of(name);
      return bias.map((sum, i) => v.reduce((sum, u, j) => sum + w[i * v.length + j] * u, sum));
    },
    conv1(name, x) {
      const [w, bias] = of(name);
      return feature(bias.length, x.size,
                     matmul(w, x.data, bias.length, x.c, x.size * x.size, bias));
    },
    conv3(name, x, stride = 1, before = 1) {   // a column holds the 3 x 3 inputs around a pixel
      const [w, bias] = of(name), size = x.size / stride, { size: side, data } = framed(x, before);
      const at = (c, row, column) => (c * side + row) * side + column;
      const rows = places(9 * x.c, j => at(j / 9 | 0, (j % 9) / 3 | 0, j % 3));
      const columns = places(size * size, p => at(0, (p / size | 0) * stride, p % size * stride));
      return feature(bias.length, size, product(w, data, rows, columns, bias));
    },
    norm(name, x) {   // each group of channels: mean 0, variance 1; then a scale and a shift each
      const [w, bias] = of(name), n = x.data.length / groups, area = x.size * x.size;
      const out = feature(x.c, x.size);
      for (let start = 0; start < x.data.length; start += n) {
        let sum = 0, squares = 0;
        for (let i = start; i < start + n; i++) sum += x.data[i];
        const mean = sum / n;
        for (let i = start; i < start + n; i++) squares += (x.data[i] - mean) ** 2;
        const scale = 1 / Math.sqrt(squares / n + 1e-6);
        for (let i = start; i < start + n; i++) {
          const c = i / area | 0;
          out.data[i] = (x.data[i] - mean) * scale * w[c] + bias[c];
        }
      }
      return out;
    },
  };
}
