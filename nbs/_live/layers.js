// What the U-Net of chapter 6 is made of. A feature map is { c, size, data }: c channels of
// size x size pixels, channel after channel, in single precision.

const feature = (c, size, data = new Float32Array(c * size * size)) => ({ c, size, data });

export const silu = v => v.map(u => u / (1 + Math.exp(-u)));
export const siluMap = x => feature(x.c, x.size, silu(x.data));

export function add(x, y) {
  const out = feature(x.c, x.size);
  for (let i = 0; i < out.data.length; i++) out.data[i] = x.data[i] + y.data[i];
  return out;
}

export function concat(x, y) {
  const out = feature(x.c + y.c, x.size);
  out.data.set(x.data);
  out.data.set(y.data, x.data.length);
  return out;
}

// (m, k) times (k, n), n a multiple of 4. Nearly all the time is spent here. Eight sums at once,
// of two rows and four columns, need six numbers from memory for eight products; one needs sixteen.
export function matmul(a, b, m, k, n, bias = new Float32Array(m)) {
  const out = new Float32Array(m * n);
  for (let i = 0; i < m; i += 2) {
    const second = Math.min(i + 1, m - 1);          // an odd last row is computed twice
    for (let p = 0; p < n; p += 4) {
      let s0 = bias[i], s1 = s0, s2 = s0, s3 = s0, r0 = bias[second], r1 = r0, r2 = r0, r3 = r0;
      for (let j = 0, u = i * k, v = second * k, q = p; j < k; j++, u++, v++, q += n) {
        const w = a[u], z = a[v], b0 = b[q], b1 = b[q + 1], b2 = b[q + 2], b3 = b[q + 3];
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

// For each output pixel the 3 x 3 inputs around it, in the order of the weights: 9c rows. `before`
// is how far the first one reaches out of the image: 1, or 0 with padding at the far sides only.
function patches(x, size, stride, before) {
  const out = new Float32Array(9 * x.c * size * size);
  let o = 0;
  for (let c = 0; c < x.c; c++) for (let dy = 0; dy < 3; dy++) for (let dx = 0; dx < 3; dx++)
    for (let i = 0; i < size; i++) for (let j = 0; j < size; j++, o++) {
      const row = i * stride + dy - before, column = j * stride + dx - before;
      if (row >= 0 && row < x.size && column >= 0 && column < x.size)
        out[o] = x.data[(c * x.size + row) * x.size + column];
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
    conv3(name, x, stride = 1, before = 1) {
      const [w, bias] = of(name), size = x.size / stride;
      return feature(bias.length, size, matmul(
        w, patches(x, size, stride, before), bias.length, 9 * x.c, size * size, bias));
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
