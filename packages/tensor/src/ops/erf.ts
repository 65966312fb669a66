/** The error function in double, for references: a series up to 3, a continued fraction beyond. */
export function erf(x: number): number {
  const z = Math.abs(x);
  const value = z < 3 ? series(z) : 1 - tail(z);
  return x < 0 ? -value : value;
}

/** 2/√π Σ_n 2^n z^(2n+1) / (2n+1)!! · e^-z²: all terms have one sign, so nothing cancels. */
function series(z: number): number {
  let term = z;
  let sum = z;
  for (let n = 1; term > 1e-17 * sum; n++) {
    term *= (2 * z * z) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-z * z) * sum;
}

/** 1 - erf(z) = e^-z² / √π · 1/(z + (1/2)/(z + (2/2)/(z + (3/2)/(z + ...)))). */
function tail(z: number): number {
  let denominator = z;
  for (let n = 60; n > 0; n--) denominator = z + n / 2 / denominator;
  return Math.exp(-z * z) / Math.sqrt(Math.PI) / denominator;
}
