import { render } from "preact";
import { App } from "./App.jsx";
import { attend, pick } from "./attention.js";
import { layerOf, readData } from "./data.js";
import "./style.css";

// For tests and for the console: `posenc.weights({subject, layer, head, query, mode})` is the row of attention that the
// page would show, and each `article.view` tells by data-subject, data-layer, data-head, data-mode and data-query
// what it does show; maps, prefix tokens and rows of numbers have data-layer, data-head and data-token.
function weights(data, { subject = 0, layer = 0, head = "mean", query = 0, mode = "total" } = {}) {
  return Array.from(pick(attend(layerOf(data, subject, layer), mode, query), head));
}

function start(root) {
  try {
    const data = readData();
    window.posenc = { weights: (asked) => weights(data, asked) };
    render(<App data={data} />, root);
  } catch (error) {
    render(<p class="failure" role="alert">{error.message}</p>, root);
  }
}

start(document.getElementById("app"));
