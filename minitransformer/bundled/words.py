"""The vocabulary of the bundled model's world. Every word is one token."""

NAMES = """
Ada Alan Anna Bea Ben Bo Bruno Cara Carl Cleo Cora Dan Dora Ella Emil Emma Eric Eva Ezra Finn Fred
Gia Gina Gus Hana Hugo Ida Iris Ivan Jack Jade Jill Juan Judy Kai Karl Kate Ken Kim Kira Lana Lars
Lena Leo Lily Lisa Liv Luca Lucy Luna Max Mia Milo Mina Nick Nina Noah Nora Odin Olga Olaf Omar Otto
Owen Pam Paul Pia Ray Rex Rita Rosa Ross Ruth Sam Sara Sean Sofia Stan Sven Tara Ted Theo Tim Tina
Tom Uma Ursa Vera Vic Wes Will Xena Yara Yves Zara Zoe
""".split()  # noqa: SIM905

THINGS = """
ball bell boat book boot bowl box bread brush bucket button cake candle card chair clock coat coin
comb cup doll door drum fan flag flute fork glove gold hammer hat honey horn jar key kite knife
ladder lamp leaf letter map mask mirror nail needle pan pearl pen pie pillow plate ring rope scarf
shell shoe soap spoon star stone sword whistle
""".split()  # noqa: SIM905

ANIMALS = """
badger bear beaver cat crow deer dog duck fox frog goat goose hare hen horse mole mouse pig
""".split()  # noqa: SIM905

MOODS = """
brave calm clever funny gentle happy kind lazy lonely proud quiet shy sleepy small tall wise
""".split()  # noqa: SIM905

HOMES = """
barn castle cottage farm house mill tent tower
""".split()  # noqa: SIM905

LANDS = """
beach field garden hill lake market river town
""".split()  # noqa: SIM905

SHELTERS = """
bridge cave cellar forest hut ship shed tunnel
""".split()  # noqa: SIM905
