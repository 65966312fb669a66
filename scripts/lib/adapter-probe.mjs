// The child process of adapter.mjs: prints {"name": ...} of the default adapter, null if there is none.

import { create } from "webgpu";

const gpu = create([]);
const adapter = await gpu.requestAdapter();
let name = null;
if (adapter) {
  // An adapter is of no use if it cannot make a device.
  const device = await adapter.requestDevice();
  name = adapter.info.description || adapter.info.device || adapter.info.vendor;
  device.destroy();
}
console.log(JSON.stringify({ name }));
process.exit(0); // a live `gpu` keeps the process running
