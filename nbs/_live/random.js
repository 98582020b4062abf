// Standard normal numbers from a seed: the same ones on every machine.

export function normals(seed) {
  let state = seed >>> 0;
  const uniform = () => {                       // mulberry32: 32 bits of state, in [0, 1)
    state = state + 0x6d2b79f5 >>> 0;
    let z = Math.imul(state ^ state >>> 15, state | 1);
    z ^= z + Math.imul(z ^ z >>> 7, z | 61);
    return ((z ^ z >>> 14) >>> 0) / 2 ** 32;
  };
  const normal = () =>                          // Box and Muller
    Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return n => Float32Array.from({ length: n }, normal);
}
