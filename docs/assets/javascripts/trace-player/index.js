import { TraceFile } from "./file.js";
import { TracePlayer } from "./player.js";

customElements.define("trace-player", TracePlayer);
customElements.define("trace-file", TraceFile);
