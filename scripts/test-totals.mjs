// Last lines of .ci/run: add the test report and the exit codes up to one line, "N passed, N failed".
//
//   node scripts/test-totals.mjs REPORT.json TEST_EXIT CHECK_EXIT

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/**
 * Totals of vitest's JSON report (null if it wrote none). What failed without a failed test counts as one
 * failure: a file that could not be loaded, a run that broke off or ran no test, a failed check.
 */
export function testTotals(report, testExit, checkExit) {
  const files = report?.testResults ?? [];
  const tests = files.flatMap((file) => file.assertionResults);
  const count = (status) => tests.filter((test) => test.status === status).length;
  const broken = files.filter(
    ({ status, assertionResults }) =>
      status === "failed" && !assertionResults.some((test) => test.status === "failed"),
  );

  const passed = count("passed");
  let failed = count("failed") + broken.length;
  if (failed === 0 && (testExit !== 0 || passed === 0)) failed++;
  if (checkExit !== 0) failed++;
  return { passed, failed, skipped: tests.length - passed - count("failed") };
}

function readReport(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    console.error(`test report: ${error.message}`);
    return null;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [path, testExit, checkExit] = process.argv.slice(2);
  const { passed, failed, skipped } = testTotals(readReport(path), Number(testExit), Number(checkExit));
  console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`);
  process.exitCode = failed > 0 ? 1 : 0;
}
