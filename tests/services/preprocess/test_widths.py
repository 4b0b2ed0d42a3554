"""Fitters at a time, and fitted scenes on their way to the encoders."""

import pytest

from ltxtrain_services.preprocess.encode_clips import OF_A_FITTER, widths


@pytest.mark.parametrize(
    ("room", "cpus", "encoders", "fitters", "places"),
    [
        (1000, 2, 1, 2, 2),
        (1000, 64, 8, 64, 16),
        (10, 64, 8, 4, 2),
        (5, 2, 1, 2, 1),
        (0, 2, 1, 1, 1),
    ],
)
def test_pictures_on_their_way_fit_in_their_room(
    room: int, cpus: int, encoders: int, fitters: int, places: int
) -> None:
    assert widths(room, cpus, encoders) == (fitters, places)
    # The least with which anything moves is one fitter and one place.
    assert OF_A_FITTER * fitters + places <= max(room, OF_A_FITTER + 1)
