export const bytes = base64 => Uint8Array.from(atob(base64), c => c.charCodeAt(0));

// A safetensors file: the length of a header (8 bytes), the header (JSON: the name, type, shape and
// place of each tensor), then the numbers. Here they are halves, which JavaScript does not know.

export function safetensors(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const start = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  delete header.__metadata__;
  return Object.fromEntries(Object.entries(header).map(([name, { data_offsets: [from, to] }]) => [
    name, Float32Array.from({ length: (to - from) / 2 }, (_, i) =>
      half(view.getUint16(start + from + 2 * i, true)))]));
}

function half(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, fraction = (bits & 1023) / 1024;
  if (exponent === 31) throw new Error("a weight is infinite or not a number");
  return sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
}
