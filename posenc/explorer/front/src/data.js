import { reader } from "./decode.js";

const FORMAT = 1;

/** The data that Python wrote into the page; an `Error` with what to do where there are none. */
export function readData() {
  const json = document.getElementById("posenc-data");
  const numbers = document.getElementById("posenc-numbers");
  if (!json || !numbers)
    throw new Error("This page holds no data yet. Write one that does with\nposenc explore IMAGE --model NAME --out page.html");
  const data = JSON.parse(json.textContent);
  if (data.format !== FORMAT)
    throw new Error(`This page reads data of format ${FORMAT}, and was given format ${data.format}. Write it again with one version of posenc.`);
  return { ...data, read: reader(numbers.textContent), layers: new Map() };
}

/**
 * One layer of a model as one subject's image went through it: what `attention.js` and the views
 * compute from. Tokens are numbered with the prefix first, then the patches by rows.
 */
export function layerOf(data, subject, index) {
  const key = `${subject} ${index}`;
  if (!data.layers.has(key)) {
    const { model, layers } = data.subjects[subject];
    const layer = { ...data.models[model].layers[index], ...layers[index], index, read: data.read };
    data.layers.set(key, { ...layer, tokens: layer.prefix.length + layer.height * layer.width });
  }
  return data.layers.get(key);
}

export const numLayers = (data, subject) => data.subjects[subject].layers.length;

/** A short address of an image, made once: a data address in many elements is parsed in each. */
const addresses = new Map();
export function addressOf(image) {
  if (!addresses.has(image.url)) addresses.set(image.url, blobOf(image.url));
  return addresses.get(image.url);
}

function blobOf(url) {
  const [, type, base64] = url.match(/^data:([^;,]+);base64,(.*)$/s) ?? [];
  if (!base64) return url;
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type }));
}
