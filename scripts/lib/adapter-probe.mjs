// Child process of adapter.mjs: print {"name": ...} of the default adapter, null if there is none.

import { create } from "webgpu";

const gpu = create([]);
const adapter = await gpu.requestAdapter();
let name = null;
if (adapter) {
  // An adapter whose device cannot be made is of no use, so ask for that too.
  const device = await adapter.requestDevice();
  name = adapter.info.description || adapter.info.device || adapter.info.vendor;
  device.destroy();
}
console.log(JSON.stringify({ name }));
process.exit(0); // a live `gpu` would keep the process running
