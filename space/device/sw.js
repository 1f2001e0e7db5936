// Keeps one version of all files, verified, so that the page works offline and loads nothing twice.

const VERSION = "{{version}}";
const FILES = {{files}}; // path -> SHA-256
const POLICY = "{{policy}}"; // a worker has no <meta>: its policy comes as a header

const whole = (path) => new URL(path, self.registration.scope).href;

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(VERSION).then((cache) => Promise.all(Object.entries(FILES).map(async ([path, integrity]) => {
    await cache.add(new Request(whole(path), { integrity, cache: "no-cache" }));
  }))));
});

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    const names = await caches.keys();
    const old = names.filter((name) => name.startsWith("cxrlib-") && name !== VERSION);
    await Promise.all(old.map((name) => caches.delete(name)));
    await self.clients.claim();
  })());
});

self.addEventListener("message", ({ data }) => data === "take over" && self.skipWaiting());

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || url.origin !== location.origin) return;
  const path = url.pathname.endsWith("/") ? `${url.pathname}index.html` : url.pathname;
  event.respondWith((async () => {
    const kept = await caches.match(new URL(path, url).href, { cacheName: VERSION });
    if (!kept) return fetch(event.request);
    const headers = new Headers(kept.headers);
    headers.set("Content-Security-Policy", POLICY);
    return new Response(kept.body, { status: kept.status, headers });
  })());
});
