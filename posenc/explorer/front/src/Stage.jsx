import { useLayoutEffect, useRef } from "preact/hooks";
import { addressOf } from "./data.js";
import { paint } from "./color.js";
import { columnOf, isPrefix, nameOf, patch, rowOf } from "./tokens.js";

/** The map of one row of attention, over the image as its background. */
export function Heat({ layer, weights, largest, opacity }) {
  const canvas = useRef();
  useLayoutEffect(() => paint(canvas.current, layer, weights, largest), [layer, weights, largest]);
  return <canvas ref={canvas} width={layer.width} height={layer.height} style={{ opacity }} aria-hidden="true" />;
}

function Cell({ layer, token, kind }) {
  if (token === null || isPrefix(layer, token)) return null;
  const place = { x: columnOf(layer, token), y: rowOf(layer, token), width: 1, height: 1 };
  return (
    <g class={`cell ${kind}`}>
      <rect class="halo" {...place} />
      <rect {...place} />
    </g>
  );
}

function lines({ height, width }) {
  const across = Array.from({ length: height - 1 }, (_, row) => `M0 ${row + 1}H${width}`);
  const down = Array.from({ length: width - 1 }, (_, column) => `M${column + 1} 0V${height}`);
  return [...across, ...down].join("");
}

function tokenAt(layer, element, event) {
  const box = element.getBoundingClientRect();
  const index = (offset, length, count) => Math.max(0, Math.min(count - 1, Math.floor((offset / length) * count)));
  return patch(layer, index(event.clientY - box.top, box.height, layer.height), index(event.clientX - box.left, box.width, layer.width));
}

/**
 * The image with its tokens: the mouse points at one while it hovers, a click or a drag of any pointer chooses;
 * `onPoint(token, event)`, with null when the mouse leaves, and `onChoose(token, event)`.
 */
export function Stage({ image, layer, weights, largest, opacity, query, chosen, read, onPoint, onChoose }) {
  const element = useRef();
  const held = useRef(false);
  const token = (event) => tokenAt(layer, element.current, event);
  const down = (event) => {
    if (event.button !== 0) return;
    held.current = true;
    element.current.setPointerCapture?.(event.pointerId);
    onChoose(token(event), event);
  };
  const move = (event) => (held.current ? onChoose(token(event), event) : event.pointerType === "mouse" && onPoint(token(event), event));
  const up = () => (held.current = false);
  return (
    <div
      class="stage"
      ref={element}
      style={{ "--image": `url(${addressOf(image)})`, "--aspect": image.width / image.height }}
      role="img"
      aria-label={`${image.name}: attention of ${nameOf(layer, query)} over ${layer.height} by ${layer.width} patches`}
      onPointerDown={down}
      onPointerMove={move}
      onPointerUp={up}
      onPointerCancel={up}
      onPointerLeave={(event) => event.pointerType === "mouse" && onPoint(null, event)}
    >
      <Heat layer={layer} weights={weights} largest={largest} opacity={opacity} />
      <svg viewBox={`0 0 ${layer.width} ${layer.height}`} preserveAspectRatio="none" aria-hidden="true">
        <path class="lines" d={lines(layer)} />
        {chosen !== query && <Cell layer={layer} token={chosen} kind="chosen" />}
        <Cell layer={layer} token={query} kind="query" />
        <Cell layer={layer} token={read} kind="read" />
      </svg>
    </div>
  );
}
