// What space/device takes from the libraries that read files.
export { decode as decodePng } from "fast-png";
export { inflateSync } from "fflate";
export { Decoder as JpegLossless } from "jpeg-lossless-decoder-js";
export { parseDicom } from "dicom-parser";
