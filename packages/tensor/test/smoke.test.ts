import { CpuDevice, drawCase, MetaDevice, opNames, Pick, rowOf } from "@sidenet/tensor";
import { expect, it } from "vitest";

it("runs every row on cpu and meta", async () => {
  for (const name of opNames) {
    for (let seed = 1; seed < 20; seed++) {
      const c = drawCase(rowOf(name), new Pick(seed));
      for (const d of [new CpuDevice(), new CpuDevice({ precision: "f64" }), new MetaDevice()]) {
        const ins = c.inputs.map((i) => i && d.tensor(i.values, i.shape, { dtype: i.dtype }));
        const out = d.run(
          name,
          ins,
          c.attrs,
          rowOf(name).signature.outputs.map((o) => o.name),
        );
        if (d.kind === "cpu")
          for (const [k, t] of Object.entries(out))
            for (const v of await t.read()) expect(Number.isFinite(v), `${name} ${k} ${seed}`).toBe(true);
      }
    }
  }
});
