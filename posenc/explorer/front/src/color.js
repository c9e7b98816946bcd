// The colors of viridis (van der Walt and Smith 2015, CC0) at 33 even steps: even in lightness, and the
// same to the color-blind. Between steps, straight lines are within 2 of 255 of the original.
const STEPS =
  "440154470d6048186a482374472d7b4536814240863f49893b528b375a8d33638d2f6a8e2c728e297a8e26818e23898e21908c" +
  "1f988b1f9f8821a68528ae8031b57b3ebc744cc26c5dc9636ece5882d34c96d83fabdc32c0df24d5e21aeae51afde725";
const LAST = STEPS.length / 6 - 1;

const channel = (step, index) => parseInt(STEPS.slice(6 * step + 2 * index, 6 * step + 2 * index + 2), 16);

function colorAt(share) {
  const step = Math.min(Math.floor(share * LAST), LAST - 1);
  return [0, 1, 2].map((index) => channel(step, index) + (share * LAST - step) * (channel(step + 1, index) - channel(step, index)));
}

/** The 256 colors as red, green, blue, opaque: ready to be copied into pixels. */
const COLORS = new Uint8ClampedArray(Array.from({ length: 256 }, (_, i) => [...colorAt(i / 255), 255]).flat());

const indexOf = (value, largest) => (largest > 0 ? 4 * Math.round(255 * Math.min(value / largest, 1)) : 0);

/** One pixel a patch; the canvas is enlarged without smoothing, for a patch has one weight. */
export function paint(canvas, layer, weights, largest) {
  const pixels = new ImageData(layer.width, layer.height);
  for (let j = layer.prefix.length, k = 0; j < layer.tokens; j++, k += 4) {
    const from = indexOf(weights[j], largest);
    pixels.data.set(COLORS.subarray(from, from + 4), k);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

export const cssColor = (value, largest) => `rgb(${COLORS.subarray(indexOf(value, largest), indexOf(value, largest) + 3).join(" ")})`;

export const GRADIENT = `linear-gradient(to right, ${Array.from({ length: 33 }, (_, i) => cssColor(i, 32)).join(", ")})`;
