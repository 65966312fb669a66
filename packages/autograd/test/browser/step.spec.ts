import { CpuDevice } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { expect, it } from "vitest";
import { openChromium, openPage } from "../../../../scripts/lib/chromium.mjs";
import { callInFirefox } from "../../../../scripts/lib/firefox.mjs";
import { decoderStep } from "../decoder-step.ts";
import { expectClose } from "../support.ts";

const PAGE = new URL("./step.page.ts", import.meta.url);

it("a step in an isolated page on three threads and in another on one gives the numbers of Node, to the bit", async () => {
  const device = await openNodeWasm({ threads: 2 });
  const want = await decoderStep(device, 4);
  device.dispose();
  const browser = await openChromium();
  try {
    for (const [isolated, threads] of [[true, 3] as const, [false, 1] as const]) {
      const page = await openPage(browser, PAGE, { isolated });
      const got: Record<string, number[]> = await page.call("onWasm", threads);
      for (const [name, values] of want) expect(got[name], name).toEqual(Array.from(values));
      await page.close();
    }
  } finally {
    await browser.close();
  }
});

it("a step on Firefox's WebGPU gives the numbers of the reference", async () => {
  const want = await decoderStep(new CpuDevice({ precision: "f64" }));
  const got: Record<string, number[]> = await callInFirefox(PAGE, "onWebGpu");
  expectClose(new Map(Object.entries(got)), want, 2e-5);
});
