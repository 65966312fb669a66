import { openNodeWasm } from "@sidenet/tensor/node";
import { expect, it } from "vitest";
import { openChromium, openPage } from "../../../../scripts/lib/browser.mjs";
import { decoderStep } from "../decoder-step.ts";

it("a step in an isolated page on three threads and in another on one gives the numbers of Node, to the bit", async () => {
  const device = await openNodeWasm({ threads: 2 });
  const want = await decoderStep(device, 4);
  device.dispose();
  const browser = await openChromium();
  try {
    for (const [isolated, threads] of [[true, 3] as const, [false, 1] as const]) {
      const page = await openPage(browser, new URL("./step.page.ts", import.meta.url), { isolated });
      const got: Record<string, number[]> = await page.call("step", threads);
      for (const [name, values] of want) expect(got[name], name).toEqual(Array.from(values));
      await page.close();
    }
  } finally {
    await browser.close();
  }
});
