"""Why a parameter is left alone, or what it is: the words that all tables share."""

CHANNELS = "mixes channels, on which a spatial group acts trivially"
PER_CHANNEL = "one number per channel, the same at every place"
NO_PLACE = "a token of no place: the group leaves it where it is"
ONE_NUMBER = "one number for the whole network"
TEXT = "belongs to text, on which a spatial group does not act"
PATCH_WRITER = "writes whole patches of pixels from channels of no place: only constant patches would be symmetric"
SHIFTS = "the same at every place, so it commutes with shifts as it is"
ROPE = (
    "rotary position embedding: its coordinates are vectors, not scalars; projecting them to invariants erases "
    "position: abstain"
)

KERNEL = "meets the pixels or tokens of a window"
TABLE = "one row per place of the grid"
OFFSETS = "one row per offset between two places of a window"
MERGING = "meets the 2x2 neighbours that are joined, columns before rows"
MERGING_NORM = "one number for each of the 2x2 neighbours that are joined, columns before rows"

UNKNOWN = "no rule knows it; targets=[ParameterRule(...)] says what it carries"
