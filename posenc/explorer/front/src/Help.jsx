import { useLayoutEffect, useRef } from "preact/hooks";

const KEYS = [
  ["← ↑ → ↓", "move the query over the grid; below the last row: the prefix tokens"],
  ["l  L", "next, previous layer"],
  ["h  H", "next, previous head (their mean is one)"],
  ["1 – 4", "total, content, position, bias"],
  ["c", "the first prefix token (CLS) is the query"],
  ["a", "all layers and heads, or the heads of one layer"],
  ["r", "the pointer moves the query, or reads a token"],
  ["Shift", "held while the pointer moves: the other of these two"],
  ["?", "this list"],
];

/** Keys and conventions. A dialog of the browser: Escape and a click on the button close it. */
export function Help({ open, version, onClose }) {
  const dialog = useRef();
  useLayoutEffect(() => (open ? dialog.current.showModal?.() : dialog.current.close?.()), [open]);
  return (
    <dialog ref={dialog} onClose={onClose} aria-label="keys">
      <h2>Keys</h2>
      <dl>
        {KEYS.map(([keys, what]) => (
          <div key={keys}>
            <dt><kbd>{keys}</kbd></dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <p class="hint">Rows, columns, heads and layers are counted from 0. Position and content split each token by the mean of its place over crops of the image, which is an approximation. The address of the page holds what is shown. posenc {version}</p>
      <button onClick={onClose}>Close</button>
    </dialog>
  );
}
