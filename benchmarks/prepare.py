"""How many cases a second does `prepare()` turn into arrays?

PNG pairs: against the decoder alone on all cores (image and mask files decoded, nothing done with
them; and the images without their masks), and a loop of `cv2.imread` and `cv2.resize`. JPEG
inside DICOM: against the decoder alone at 1/8 scale, without masks, and full decoding by pydicom,
then resized, with the same masks as ours, on all cores and in a loop. All at 128 px, on the real
files of `../shared/data` where they are, and on phantoms of 1024 x 1024. `make bench` runs it.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pandas as pd
import pydicom
from harness import compare, report
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage

import pneumo_lib as pl
from pneumo_lib.data.images import resize_mask

SIZE, ALL = 128, 12_047
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pydicom_pair(case):
    pixels = pydicom.dcmread(case["image_path"]).pixel_array
    mask = resize_mask(pl.data.read_mask(case, pixels.shape), (SIZE, SIZE))
    return cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA), mask


def opencv_pair(case):
    image, grey = (
        cv2.imread(case[kind], cv2.IMREAD_GRAYSCALE) for kind in ("image_path", "mask_path")
    )
    shares = cv2.resize((grey > 127).astype("float32"), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA), shares >= 0.5


def decode(case, kinds=("image_path", "mask_path")):
    for kind in kinds:
        cv2.imdecode(np.fromfile(case[kind], "uint8"), cv2.IMREAD_GRAYSCALE)


def decode_reduced(frame):
    cv2.imdecode(frame, cv2.IMREAD_REDUCED_GRAYSCALE_8)


def jpeg_of(case):
    """The JPEG inside a DICOM file, in memory."""
    data = pydicom.dcmread(case["image_path"]).PixelData
    return np.frombuffer(next(generate_frames(data, number_of_frames=1)), "uint8")


def each(function, records, *, threads=1):
    """`function` of every record, in a loop or on `threads` threads."""
    if threads == 1:
        return [function(record) for record in records]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, records))


def repeated(cases, times):
    """The same files under `times` as many names: long enough to measure, in the page cache."""
    table = pd.concat([cases] * times, ignore_index=True)
    return table.assign(image_id=[f"{number}" for number in range(len(table))])


def measure(name, cases, *, dicom, rounds):
    records = cases.to_dict("records")
    cores = os.cpu_count()
    with TemporaryDirectory() as folder:
        count = iter(range(1000))

        def ours():
            return pl.data.prepare.prepare(cases, Path(folder) / str(next(count)), size=SIZE)

        ways = {"ours": ours}
        if dicom:
            frames = each(jpeg_of, records)
            ways["decoder alone at 1/8"] = partial(each, decode_reduced, frames, threads=cores)
            ways["pydicom, full decode"] = partial(each, pydicom_pair, records, threads=cores)
            ways["pydicom, full decode, loop"] = partial(each, pydicom_pair, records)
            pairs, tolerance = each(pydicom_pair, records), 2
        else:
            images = partial(decode, kinds=["image_path"])
            ways["decoder alone"] = partial(each, decode, records, threads=cores)
            ways["decoder alone, images only"] = partial(each, images, records, threads=cores)
            ways["cv2.imread, cv2.resize, loop"] = partial(each, opencv_pair, records)
            pairs, tolerance = each(opencv_pair, records), 0
        check_same_arrays(name, ours(), pairs, tolerance)
        table = compare(ways, rounds=rounds)
    table["cases a second"] = 1e3 * len(cases) / table["median_ms"]
    table["times ours"] = table["median_ms"] / table["median_ms"].iloc[0]
    table[f"seconds for {ALL:,}"] = ALL / table["cases a second"]
    table.insert(0, "data", name)
    return table


def check_same_arrays(name, prepared, pairs, tolerance):
    images, masks = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    worst = np.abs(prepared.images.astype(int) - images).max()
    if worst > tolerance:
        raise SystemExit(f"{name}: images differ by {worst} grey levels, more than {tolerance}")
    if (prepared.masks != masks).any():
        raise SystemExit(f"{name}: masks differ")


def as_dicom(cases, folder):
    """The images as 8-bit JPEG baseline inside DICOM, as the official release has them."""
    folder.mkdir()
    paths = []
    for number, case in cases.iterrows():
        pixels = cv2.imread(case["image_path"], cv2.IMREAD_GRAYSCALE)
        file = pydicom.Dataset()
        file.file_meta = pydicom.dataset.FileMetaDataset()
        file.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        file.SOPClassUID = SecondaryCaptureImageStorage
        file.SOPInstanceUID = pydicom.uid.generate_uid()
        file.Rows, file.Columns = pixels.shape
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated = file.BitsStored = 8
        file.HighBit, file.PixelRepresentation = 7, 0
        file.PixelData = encapsulate([cv2.imencode(".jpg", pixels)[1].tobytes()])
        file["PixelData"].VR = "OB"
        paths.append(str(folder / f"{number}.dcm"))
        file.save_as(paths[-1], enforce_file_format=True)
    rles = [pl.rle_encode(pl.data.read_mask(case, pixels.shape)) for _, case in cases.iterrows()]
    columns = {"image_path": paths, "rles": [[rle] for rle in rles]}
    return cases.drop(columns="mask_path").assign(**columns)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    tables = []
    with TemporaryDirectory() as folder:
        phantoms = pl.make_phantoms(Path(folder) / "phantoms", count=48, size=1024)
        phantoms = pl.read_cases(phantoms)
        data = {"phantoms 1024, PNG": (phantoms, 8, False)}
        data["phantoms 1024, DICOM"] = (as_dicom(phantoms, Path(folder) / "dicom"), 16, True)
        if (SHARED / "siim_real").is_dir():
            data["siim_real 512, PNG"] = (pl.read_cases(SHARED / "siim_real"), 4, False)
        if (SHARED / "siim_dicom_sample").is_dir():
            sample = pl.read_cases(SHARED / "siim_dicom_sample")
            data["siim sample 1024, DICOM"] = (sample, 80, True)
        for name, (cases, times, dicom) in data.items():
            tables.append(measure(name, repeated(cases, times), dicom=dicom, rounds=rounds))
            print(tables[-1].to_string(index=False, float_format="{:,.3g}".format), flush=True)
    report("prepare", pd.concat(tables), unit="milliseconds for all cases", size=SIZE)


if __name__ == "__main__":
    main()
