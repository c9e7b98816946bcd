import { attend, largestPatch, modeOf, pick } from "./attention.js";
import { addressOf, layerOf, numLayers } from "./data.js";
import { headName, number } from "./format.js";
import { Heat } from "./Stage.jsx";
import { columnOf, isPrefix, rowOf, sameToken } from "./tokens.js";

const headsOf = (layer) => ["mean", ...Array(layer.heads).keys()];

function Dot({ layer, query }) {
  if (isPrefix(layer, query)) return null;
  const place = { left: `${(100 * columnOf(layer, query)) / layer.width}%`, top: `${(100 * rowOf(layer, query)) / layer.height}%` };
  return <i class="dot" style={{ ...place, width: `${100 / layer.width}%`, height: `${100 / layer.height}%` }} />;
}

/** One small map. Only the chosen one is a stop of the Tab key: there may be hundreds, and h and l reach all. */
function Tile({ layer, head, query, weights, largest, chosen, label, onChoose }) {
  const title = `${headName(head)} of ${layer.name}: largest ${number(largestPatch(layer, weights))}`;
  return (
    <button class="tile" title={title} aria-label={title} aria-pressed={chosen} tabIndex={chosen ? 0 : -1} data-layer={layer.index} data-head={head} onClick={onChoose}>
      <span class="picture">
        <Heat layer={layer} weights={weights} largest={largest} />
        <Dot layer={layer} query={query} />
      </span>
      {label}
    </button>
  );
}

const background = ({ width, height, ...image }, size) => ({
  "--image": `url(${addressOf(image)})`,
  "--aspect": width / height,
  "--tile": `${Math.round(size * Math.sqrt(width / height))}px`,
});

/** All heads of a layer, and their mean. */
export function Heads({ image, layer, head, query, attention, shared, onChoose }) {
  return (
    <div class="heads" style={background(image, layer.heads > 8 ? 80 : 100)}>
      {headsOf(layer).map((each) => {
        const weights = pick(attention, each);
        const largest = largestPatch(layer, weights);
        const label = (
          <span class="label">
            {each === "mean" ? "mean" : each} <span class="value">{number(largest)}</span>
          </span>
        );
        return <Tile key={each} {...{ layer, query, weights, label }} head={each} largest={shared ?? largest} chosen={each === head} onChoose={() => onChoose({ head: each })} />;
      })}
    </div>
  );
}

function Row({ layer, mode, query, head, chosen, shared, onChoose }) {
  const attention = attend(layer, modeOf(layer, mode), query);
  return headsOf(layer).map((each) => {
    const weights = pick(attention, each);
    const tile = { layer, query, weights, head: each, largest: shared ?? largestPatch(layer, weights), chosen: chosen && each === head };
    return <Tile key={each} {...tile} onChoose={() => onChoose({ layer: layer.index, head: each })} />;
  });
}

/** Every head of every layer: rows are layers, columns heads. */
export function Matrix({ data, subject, layer, mode, query, head, shared, onChoose }) {
  const layers = Array.from({ length: numLayers(data, subject) }, (_, index) => layerOf(data, subject, index));
  const most = Math.max(...layers.map((each) => each.heads));
  return (
    <div class="matrix" style={{ ...background(data.subjects[subject].image, Math.min(64, 500 / layers.length)), "--columns": most + 1 }}>
      <span class="corner">layer</span>
      {["mean", ...Array(most).keys()].map((each) => (
        <span key={each} class="column">{each}</span>
      ))}
      {layers.map((each) => (
        <div class="row" key={each.index}>
          <span class="line" title={each.name}>{each.index}</span>
          <Row layer={each} query={sameToken(layer, query, each)} chosen={each === layer} {...{ mode, head, shared, onChoose }} />
        </div>
      ))}
    </div>
  );
}
