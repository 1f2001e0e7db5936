#!/bin/sh
# Rebuild space/device/vendor from the versions in package.json: sh tools/device/build.sh
set -eu
cd "$(dirname "$0")"
out=../../space/device/vendor
npm ci --ignore-scripts --no-audit --no-fund --silent
esbuild() { node node_modules/esbuild/bin/esbuild "$@" --bundle --format=esm --minify --legal-comments=none --log-level=error; }
rm -rf "$out" && mkdir -p "$out"
esbuild formats.js --outfile="$out/formats.js"
esbuild node_modules/@litertjs/core/dist/index.js --outfile="$out/litert.js"
runtime=node_modules/@litertjs/core/wasm/litert_wasm_compat_internal # SIMD, one thread: every browser since 2021
cp "$runtime.js" "$out/"
gzip -9 -n -c "$runtime.wasm" > "$out/litert_wasm_compat_internal.wasm.gz"
for codec in charls/dist/charlswasm_decode openjpeg/dist/openjpegwasm_decode; do
  cp "node_modules/@cornerstonejs/codec-$codec.js" "node_modules/@cornerstonejs/codec-$codec.wasm" "$out/"
done
{
  echo "The files of this folder are built by tools/device/build.sh from these packages."
  for name in @litertjs/core @litertjs/wasm-utils dicom-parser fast-png fflate iobuffer jpeg-lossless-decoder-js \
    @cornerstonejs/codec-charls @cornerstonejs/codec-openjpeg; do
    folder=node_modules/$name
    node -e 'const p = require(process.argv[1]); console.log(`\n=== ${p.name} ${p.version}, ${p.license}\n`)' "./$folder/package.json"
    cat "$folder"/LICENSE* "$folder"/license* "$folder"/LICENCE* 2>/dev/null || true
  done
} > "$out/LICENSES.txt"
(cd "$out" && sha256sum ./*.* > SHA256SUMS)
