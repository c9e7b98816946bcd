import re

import pytest
from data import market
from data.market import Photo, read_dataset

MARKET = {
    "bounding_box_train": ["0007_c3s1_000551_00.jpg", "0002_c1s1_000451_03.jpg", "Thumbs.db"],
    "query": ["0001_c1s1_001051_00.jpg"],
    "bounding_box_test": [
        "0001_c12s1_001051_00.jpg",
        "0000_c2s1_000151_01.jpg",
        "-1_c1s1_000401_03.jpg",
        "._0001_c1s1_001051_00.jpg",
        "readme.txt",
    ],
}
DUKE = {
    "bounding_box_train": ["0002_c1_f0044158.jpg"],
    "query": ["0005_c2_f0046985.jpg"],
    "bounding_box_test": ["0005_c1_f0046982.jpg", "0000_c8_f0000001.jpg"],
}
MSMT17 = {
    "train/0000": ["0000_000_01_0303morning_0015_0.jpg", "0000_010_15_0114noon_0100_0_ex.jpg"],
    "train/0005": ["0005_001_05_0303morning_0040_2.jpg"],
    "test/0000": ["0000_000_02_0302afternoon_0015_0.jpg", "0000_001_03_0302noon_0015_1.jpg"],
}
LISTS = {
    "list_train.txt": "0000/0000_000_01_0303morning_0015_0.jpg 0\n"
    "0005/0005_001_05_0303morning_0040_2.jpg 5\n\n",
    "list_val.txt": "0000/0000_010_15_0114noon_0100_0_ex.jpg 0\n",
    "list_query.txt": "0000/0000_000_02_0302afternoon_0015_0.jpg 0\n",
    "list_gallery.txt": "0000/0000_001_03_0302noon_0015_1.jpg 0\n",
}
FOLDERS = ["bounding_box_train", "query", "bounding_box_test"]


def fill(root, tree, lists=()):
    for folder, names in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (root / folder / name).touch()
    for name in lists:
        (root / name).write_text(lists[name])
    return root


@pytest.fixture
def market1501(tmp_path):
    return fill(tmp_path / "Market-1501-v15.09.15", MARKET)


@pytest.fixture
def msmt17(tmp_path):
    return fill(tmp_path / "MSMT17", MSMT17, LISTS)


def people_and_cameras(photos):
    return [(photo.person, photo.camera) for photo in photos]


# What is read


def test_market1501(market1501):
    splits = read_dataset(market1501)
    train = market1501 / "bounding_box_train"
    assert splits.train == (
        Photo(train / "0002_c1s1_000451_03.jpg", 2, 1),
        Photo(train / "0007_c3s1_000551_00.jpg", 7, 3),
    )
    assert people_and_cameras(splits.query) == [(1, 1)]
    assert people_and_cameras(splits.gallery) == [(market.DISTRACTOR, 2), (1, 12)]


@pytest.mark.parametrize("kind", ["dukemtmc", "occluded_duke"])
def test_duke(tmp_path, kind):
    splits = read_dataset(fill(tmp_path, DUKE), kind)
    assert people_and_cameras(splits.train) == [(2, 1)]
    assert people_and_cameras(splits.query) == [(5, 2)]
    assert people_and_cameras(splits.gallery) == [(0, 8), (5, 1)]


def test_msmt17_trains_on_both_lists_and_its_person_0_is_asked_for(msmt17):
    splits = read_dataset(msmt17, "msmt17")
    assert people_and_cameras(splits.train) == [(0, 1), (0, 15), (5, 5)]
    assert splits.query == (
        Photo(msmt17 / "test" / "0000" / "0000_000_02_0302afternoon_0015_0.jpg", 0, 2),
    )
    assert people_and_cameras(splits.gallery) == [(0, 3)]


def test_msmt17_version_2(msmt17):
    (msmt17 / "train").rename(msmt17 / "mask_train_v2")
    (msmt17 / "test").rename(msmt17 / "mask_test_v2")
    splits = read_dataset(msmt17, "msmt17")
    assert [photo.path.parent.parent.name for photo in splits.train] == ["mask_train_v2"] * 3
    assert splits.gallery[0].path.parent.parent.name == "mask_test_v2"


def test_msmt17_people_are_those_of_the_list(msmt17):
    (msmt17 / "list_query.txt").write_text("0000/0000_000_02_0302afternoon_0015_0.jpg 17\n")
    assert people_and_cameras(read_dataset(msmt17, "msmt17").query) == [(17, 2)]


def test_the_root_may_be_text(market1501):
    assert read_dataset(str(market1501)) == read_dataset(market1501)


def test_suffixes_in_capitals_are_images(market1501):
    (market1501 / "query" / "0003_c2s1_000001_00.JPG").touch()
    assert people_and_cameras(read_dataset(market1501).query) == [(1, 1), (3, 2)]


# What does not fit


def says(*parts):
    return "(?s)" + ".*".join(re.escape(str(part)) for part in parts)


def test_unknown_kind(market1501):
    with pytest.raises(ValueError, match=r"one of market1501, dukemtmc, .*got 'market'"):
        read_dataset(market1501, "market")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_missing_folder(market1501, folder):
    (market1501 / folder).rename(market1501 / "elsewhere")
    found = ", ".join(sorted({*FOLDERS, "elsewhere"} - {folder}))
    with pytest.raises(FileNotFoundError, match=says(folder, market1501, f"found there: {found}")):
        read_dataset(market1501)


def test_the_parent_of_the_root(market1501):
    expected = says("bounding_box_train", market1501.parent, f"; pass {market1501}, which has")
    with pytest.raises(FileNotFoundError, match=expected):
        read_dataset(market1501.parent)


def test_a_missing_root(market1501):
    expected = says("which is no folder; found in", market1501.parent, market1501.name)
    with pytest.raises(FileNotFoundError, match=expected):
        read_dataset(market1501.parent / "market")


@pytest.mark.parametrize("name", ["holiday.jpg", "0001_c2_f0046182.jpg", "c1s1_0001_00.png"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_name_of_another_pattern(market1501, folder, name):
    (market1501 / folder / name).touch()
    expected = says("start like 0002_c1s1_000451_03.jpg", market1501 / folder / name, "dukemtmc")
    with pytest.raises(ValueError, match=expected):
        read_dataset(market1501)


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_empty_split(market1501, folder):
    for path in (market1501 / folder).iterdir():
        path.unlink()
    (market1501 / folder / "-1_c1s1_000401_03.jpg").touch()
    expected = says("at least one photo", market1501 / folder, "found", "-1_c1s1_000401_03.jpg")
    with pytest.raises(ValueError, match=expected):
        read_dataset(market1501)


@pytest.mark.parametrize("folder", FOLDERS[:2])
def test_a_distractor_outside_the_gallery(market1501, folder):
    (market1501 / folder / "0000_c1s1_000151_01.jpg").touch()
    with pytest.raises(ValueError, match=says("bounding_box_test only", folder, "0000_c1s1")):
        read_dataset(market1501)


@pytest.mark.parametrize("name", LISTS)
def test_a_missing_list(msmt17, name):
    (msmt17 / name).unlink()
    with pytest.raises(FileNotFoundError, match=says("list", name, msmt17, "found there: list_")):
        read_dataset(msmt17, "msmt17")


def test_an_empty_list(msmt17):
    (msmt17 / "list_query.txt").write_text("\n")
    with pytest.raises(ValueError, match=says("list_query.txt in", msmt17, "has none", "0000")):
        read_dataset(msmt17, "msmt17")


def test_a_listed_photo_that_is_missing(msmt17):
    path = msmt17 / "test" / "0000" / "0000_001_03_0302noon_0015_1.jpg"
    path.unlink()
    expected = says("line 1 of", "list_gallery.txt", path, "missing", "0000_000_02_0302afternoon")
    with pytest.raises(FileNotFoundError, match=expected):
        read_dataset(msmt17, "msmt17")


@pytest.mark.parametrize("line", ["0000/x.jpg", "0000/x.jpg zero", "0000/x.jpg 0 1", "0000/x -1"])
def test_a_line_that_does_not_fit(msmt17, line):
    with open(msmt17 / "list_train.txt", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=says("a path and a person's number", "line 4", line)):
        read_dataset(msmt17, "msmt17")


def test_a_listed_name_without_a_camera(msmt17):
    (msmt17 / "test" / "0000" / "0000_000_c2.jpg").touch()
    (msmt17 / "list_query.txt").write_text("0000/0000_000_c2.jpg 0\n")
    with pytest.raises(ValueError, match=says("0303morning", "0000_000_c2.jpg", "market1501")):
        read_dataset(msmt17, "msmt17")


def test_messages_show_few_names(market1501):
    for number in range(20):
        (market1501 / "bounding_box_train" / f"{number:02}.txt").touch()
    for path in (market1501 / "bounding_box_train").glob("*.jpg"):
        path.unlink()
    with pytest.raises(ValueError, match=says("06.txt, 07.txt and 13 more")):
        read_dataset(market1501)
