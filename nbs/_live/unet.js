// Chapter 6: the paper's U-Net, for one image. Its weights keep the names of the file that they
// come from, which are those of the library diffusers.
import { add, concat, layers, matmul, silu, siluMap, upsampled } from "./layers.js";

// Sines, then cosines, of t at frequencies from 1 down to 1/10000.
function timestepEmbedding(t, dim) {
  const half = dim / 2, out = new Float32Array(dim);
  for (let i = 0; i < half; i++) {
    const frequency = Math.fround(Math.exp(Math.fround(-Math.log(1e4) * i / (half - 1))));
    const angle = Math.fround(t * frequency);
    out[i] = Math.sin(angle);
    out[half + i] = Math.cos(angle);
  }
  return out;
}

// Two convolutions around which the input is carried; the time enters between them.
function residualBlock(net, at, x, time) {
  let h = net.conv3(`${at}.conv1`, siluMap(net.norm(`${at}.norm1`, x)));
  const shift = net.linear(`${at}.time_emb_proj`, time), area = h.size * h.size;
  for (let i = 0; i < h.data.length; i++) h.data[i] += shift[i / area | 0];
  h = net.conv3(`${at}.conv2`, siluMap(net.norm(`${at}.norm2`, h)));
  return add(net.has(`${at}.conv_shortcut`) ? net.conv1(`${at}.conv_shortcut`, x) : x, h);
}

// Self-attention over the pixels, with a residual connection.
function attention(net, at, x) {
  const h = net.norm(`${at}.group_norm`, x), n = h.size * h.size, scale = 1 / Math.sqrt(h.c);
  const [q, k, v] = ["to_q", "to_k", "to_v"].map(o => net.conv1(`${at}.${o}`, h).data);
  const shares = matmul(transposed(k, h.c, n), q, n, h.c, n);     // (key, query)
  for (let query = 0; query < n; query++) {                       // a softmax over the keys
    let most = -Infinity, sum = 0;
    for (let i = query; i < n * n; i += n) most = Math.max(most, shares[i]);
    for (let i = query; i < n * n; i += n) sum += shares[i] = Math.exp((shares[i] - most) * scale);
    for (let i = query; i < n * n; i += n) shares[i] /= sum;
  }
  const mixed = { ...h, data: matmul(v, shares, h.c, n, n) };
  return add(x, net.conv1(`${at}.to_out.0`, mixed));
}

const transposed = (x, rows, columns) =>
  x.map((_, i) => x[(i % rows) * columns + Math.floor(i / rows)]);

// config: the network's choices, as the file beside the weights has them. Returns model(x, t).
export function unet(config, weights) {
  const net = layers(weights, config.norm_num_groups), levels = config.block_out_channels.length;
  const stage = (at, i, x, time) => {    // a residual block, and attention where the level has it
    const h = residualBlock(net, `${at}.resnets.${i}`, x, time), where = `${at}.attentions.${i}`;
    return net.has(`${where}.to_q`) ? attention(net, where, h) : h;
  };

  return (x, t) => {
    const code = timestepEmbedding(t, config.block_out_channels[0]);
    const hidden = silu(net.linear("time_embedding.linear_1", code));
    const time = silu(net.linear("time_embedding.linear_2", hidden));

    let h = net.conv3("conv_in", { c: config.in_channels, size: config.sample_size, data: x });
    const aside = [h];
    for (let level = 0; level < levels; level++) {                            // the way down
      const at = `down_blocks.${level}`;
      for (let i = 0; i < config.layers_per_block; i++)
        aside.push(h = stage(at, i, h, time));
      if (level < levels - 1) aside.push(h = net.conv3(`${at}.downsamplers.0.conv`, h, 2, 0));
    }
    for (const i of [0, 1]) h = stage("mid_block", i, h, time);               // the middle
    for (let level = 0; level < levels; level++) {                            // the way up
      const at = `up_blocks.${level}`;
      for (let i = 0; i <= config.layers_per_block; i++)
        h = stage(at, i, concat(h, aside.pop()), time);
      if (level < levels - 1) h = net.conv3(`${at}.upsamplers.0.conv`, upsampled(h));
    }
    return net.conv3("conv_out", siluMap(net.norm("conv_norm_out", h))).data;
  };
}
