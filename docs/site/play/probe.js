// Few-shot transfer: logistic regression on features, fitted to a handful of examples.
import { dot, probabilities } from "./model.js";

/** What is fitted: the mean cross-entropy's sum over the examples, and `penalty`/2 times the squared weights.
 *
 *  As many weights as features, but few examples: the weights are a sum of the examples, each times a number
 *  for each class, and these numbers are what gradient descent moves, with Nesterov's momentum.
 *
 *  vectors: standardised features, one array an example; labels: class numbers.
 *  Returns a function, vector -> the probability of each class. */
export function fitted(vectors, labels, classes, penalty = 0.01, steps = 1000) {
  // A constant feature, 1, is the bias; the others together have a length of about 1.
  const product = (a, b) => 1 + dot(a, b) / a.length;
  const products = vectors.map((a) => vectors.map((b) => product(a, b)));
  const logitsOf = (row, numbers) =>
    Array.from({ length: classes }, (_, k) => row.reduce((sum, value, i) => sum + value * numbers[i][k], 0));
  const steepest = Math.max(...products.map((row) => row.reduce((sum, value) => sum + Math.abs(value), 0)));
  const rate = 1 / (steepest / 2 + penalty);
  const momentum = (1 - Math.sqrt(rate * penalty)) / (1 + Math.sqrt(rate * penalty));
  let numbers = vectors.map(() => new Float64Array(classes));
  let ahead = numbers;
  for (let step = 0; step < steps; step++) {
    const moved = ahead.map((own, i) => {
      const told = probabilities(logitsOf(products[i], ahead));
      return own.map((value, k) => value - rate * (told[k] - (labels[i] === k) + penalty * value));
    });
    ahead = moved.map((own, i) => own.map((value, k) => value + momentum * (value - numbers[i][k])));
    numbers = moved;
  }
  return (vector) => probabilities(logitsOf(vectors.map((example) => product(example, vector)), numbers));
}
