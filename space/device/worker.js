// Decodes and computes away from the page, so that it stays responsive. A classic worker: LiteRT.js loads a script.

const loading = import("./predictor.js").then(({ Predictor }) =>
  Predictor.load(new URL(self.location).searchParams.get("accelerator") ?? undefined));

loading.then(
  ({ config }) => self.postMessage({ ready: config }),
  (error) => self.postMessage({ failed: error.message }),
);

let queue = Promise.resolve(); // one image at a time

self.addEventListener("message", ({ data: { id, file } }) => {
  queue = queue.then(async () => {
    try {
      const predictor = await loading;
      const bytes = new Uint8Array(await file.arrayBuffer());
      const answer = await predictor.predict(bytes, file.name);
      const pictures = [answer.picture, answer.heat].filter(Boolean);
      self.postMessage({ id, answer }, pictures.map(({ data }) => data.buffer)); // handed over, not copied
    } catch (error) {
      self.postMessage({ id, answer: { name: file.name, status: "unreadable", reasons: [error.message] } });
    }
  });
});
