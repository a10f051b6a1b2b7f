"""Archives in object stores: stand-ins for S3 and Google Cloud Storage on this machine."""

import shutil

import pandas as pd
import pytest
from test_archive import client, more, predict, rows_of, run  # noqa: F401  (fixtures among them)


@pytest.fixture
def s3(monkeypatch):
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield s3fs.S3FileSystem
    server.stop()


@pytest.fixture
def gs(monkeypatch):
    import gcsfs
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    _, port = server._api._httpd.server_address  # of its own choice; it has no other word for it
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    yield gcsfs.GCSFileSystem
    server.stop()


@pytest.fixture(params=["s3", "gs"])
def bucket(request):
    """`(file system, URL)` of an empty bucket."""
    kind = request.getfixturevalue(request.param)
    kind.clear_instance_cache()
    store = kind(use_listings_cache=False)
    store.mkdir("xrays")
    yield store, f"{request.param}://xrays"
    store.rm("xrays", recursive=True)  # the stand-in's buckets outlive its server
    kind.clear_instance_cache()


def test_object_store_holds_archive_and_results(predict, bucket, xrays, tmp_path):  # noqa: F811
    store, url = bucket
    more(xrays, 5)
    shutil.copy(xrays / "white.dcm", xrays / "1.2.840.1")
    store.put(f"{xrays}/", "xrays/of/today/", recursive=True)
    for predicted in (11, 0):
        outcome = predict(f"{url}/of", f"{url}/results")
        assert (outcome.rows, outcome.predicted, outcome.failed) == (11, predicted, 2)
    store.get("xrays/results/", f"{tmp_path}/results/", recursive=True)
    predict(xrays, tmp_path / "local")
    remote, local = rows_of(tmp_path / "results"), rows_of(tmp_path / "local")
    assert list(remote.index) == [f"{url}/of/today/{p.relative_to(xrays)}" for p in
                                  map(type(xrays), local.index)]  # fmt: skip
    columns = list(set(remote.columns) - {"error"})  # which names the file
    pd.testing.assert_frame_equal(
        remote[columns].reset_index(drop=True), local[columns].reset_index(drop=True)
    )
    torn_name = f"{url}/of/today/a/torn.png"
    assert remote.loc[torn_name, "error"].endswith(f"Received: {torn_name}")


def test_replaced_file_of_an_object_store_is_predicted_again(predict, bucket, xrays):  # noqa: F811
    store, url = bucket
    store.put(f"{xrays}/", "xrays/in/", recursive=True)
    first = predict(f"{url}/in", f"{url}/out", partition_files=1)
    store.put(str(xrays / "half.png"), "xrays/in/dark.png")
    again = predict(f"{url}/in", f"{url}/out", partition_files=1)
    assert again.rows == first.rows
    assert 0 < again.predicted < first.predicted


def test_list_in_an_object_store_names_files_anywhere(predict, bucket, xrays, tmp_path):  # noqa: F811
    store, url = bucket
    store.put(str(xrays / "half.png"), "xrays/half.png")
    store.pipe("xrays/list.txt", f"{url}/half.png\n{xrays}/dark.png\n".encode())
    assert predict(f"@{url}/list.txt", tmp_path / "out").failed == 0
    assert set(rows_of(tmp_path / "out").index) == {f"{url}/half.png", f"{xrays}/dark.png"}


def test_store_without_the_archive_is_told(predict, bucket, tmp_path):  # noqa: F811
    _, url = bucket
    with pytest.raises(FileNotFoundError, match=f"Received: {url}/none, which is no folder"):
        predict(f"{url}/none", tmp_path / "out")
