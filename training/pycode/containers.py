"""Rules for lists, dicts, sets, tuples, arrays and data frames.

See `snippets.py` for the notation.
"""

_COLLECTIONS = {
    "list": """
[<num>, <num>]
[<num>, <num>, <num>]
[<text>, <text>]
[<int>, <int>, <int>, <int>]
[("<noun>", <int>), ("<noun>", <int>)]
list(range(<int>))
list(range(<digit>, <int>, <digit>))
[<elem> for <n_it:v> in <list>]
[<elem> for <n_it:v> in <list> if <pred>]
[<plain_text> for <n_it:v> in <text_base>.split("<char>")]
[<num> for _ in range(<int>)]
[<=a> + <=b> for <n_it:a>, <n_it:b> in zip(<v_list>, <v_list>)]
[<=a> * <=b> for <n_it:a>, <n_it:b> in enumerate(<list>)]
[[<int>] * <int> for _ in range(<num>)]
<list> + <list>
<list_base>[<digit>:]
<list_base>[-<digit>:]
<list_base>[::<digit>]
<list_base>[<v_num>:<v_num> + <int>]
sorted(<list>)
sorted(<list>, reverse=True)
sorted(<list>, key=lambda <n_it:v>: <pick>)
sorted(<list>, key=lambda <n_it:v>: <pick>, reverse=True)
sorted(<map_base>.items(), key=lambda <n_it:v>: <=v>[1])[:<int>]
list(map(lambda <n_it:v>: <elem>, <list>))
list(filter(lambda <n_it:v>: <pred>, <list>))
list(zip(<v_list>, <v_list>))
list(set(<list>))
list(<map_base>.values())
<text_base>.split()
<text_base>.splitlines()
re.findall(r"<regex>", <text>)
random.sample(<v_list>, <digit>)
<call>
""",
    "list_leaf": """
<v_list>
<v_list>
<v_list>
<v_obj>.<plural>
range(<int>)
[<int>, <int>, <int>]
["<noun>", "<noun>"]
["<person>", "<person>", "<person>"]
[<float>, <float>]
[]
""",
    "list_base": """
<v_list>
<v_list>
<v_list>
<v_obj>.<plural>
<text_base>.split("<char>")
list(<map_base>.values())
<call>
""",
    "elem": """
<=v> ** 2
<=v> * <digit>
<=v> + <v_num>
<=v>.<noun>
<=v>.lower()
<=v>["<noun>"]
<=v>[<position>]
(<=v>, <num>)
int(<=v>)
str(<=v>)
<func>(<=v>)
<func>(<=v>, <v_num>)
<v_map>[<=v>]
f"<noun>_{<=v>}"
<=v> / <num>
{"<noun>": <=v>, "<noun>": <int>}
""",
    "pred": """
<=v> > <num>
<=v> % <digit> == 0
<=v> is not None
<=v> not in <v_list>
<=v>.<noun> == <text>
<=v>.startswith("<char>")
<=v>["<noun>"] >= <int>
len(<=v>) > <digit>
<=v> != <text>
<=v>
<digit> <= <=v> < <int>
not <=v>.is_<adjective>
""",
    "pick": """
<=v>.<noun>
<=v>["<noun>"]
<=v>[<position>]
len(<=v>)
-<=v>
(<=v>.<noun>, -<=v>.<noun>)
<=v>.lower()
abs(<=v> - <v_num>)
""",
    "map": """
{"<noun>": <num>, "<noun>": <num>}
{"<noun>": <text>, "<noun>": <num>}
{"<person>": <int>, "<person>": <int>, "<person>": <int>}
{"<noun>": [<int>, <int>], "<noun>": <list>}
{<=v>: <elem> for <n_it:v> in <list>}
{<=v>: len(<=v>) for <n_it:v> in <list> if <pred>}
{<=a>: <=b> * <float> for <n_it:a>, <n_it:b> in <map_base>.items()}
{<=a>: <=b> for <n_it:b>, <n_it:a> in enumerate(<list>)}
dict(zip(<v_list>, <list>))
dict(<noun>=<num>)
{**<v_map>, "<noun>": <num>}
defaultdict(list)
Counter(<list>)
json.loads(<text>)
json.loads(Path(<v_text>).read_text())
<map> | {"<noun>": <text>}
<list_base>[<position>]
vars(<v_obj>)
<call>
""",
    "map_leaf": """
<v_map>
<v_map>
<v_map>
<v_obj>.<plural>
{"<noun>": <int>}
{"<noun>": "<words>", "<noun>": <float>}
{}
""",
    "map_base": """
<v_map>
<v_map>
<v_obj>.<plural>
Counter(<list>)
<call>
""",
    "set": """
{<elem> for <n_it:v> in <list>}
set(<list>)
{"<noun>", "<noun>", "<noun>"}
{<int>, <int>, <int>}
set(<v_list>) - set(<list>)
set(<v_list>) & <set>
frozenset(<list>)
""",
    "set_leaf": """
set(<v_list>)
set()
{<int>, <int>}
""",
    "tuple": """
(<num>, <num>)
(<num>, <text>, <num>)
<num>, <num>
divmod(<num>, <int>)
tuple(<list>)
("<person>", <int>, <bool>)
""",
}
_ARRAYS = {
    "array": """
np.zeros(<int>)
np.zeros((<int>, <int>))
np.ones_like(<array>)
np.arange(<digit>, <int>, <float>)
np.linspace(<digit>, <int>, <int>)
np.array(<list>)
np.array([[<int>, <int>], [<int>, <int>]])
np.random.default_rng(<int>).normal(<float>, <float>, <int>)
np.concatenate([<array>, <array>])
np.where(<array> > <num>, <array>, <float>)
np.clip(<array>, <digit>, <int>)
np.exp(-<array>)
np.dot(<array>, <array>)
torch.zeros(<int>, <int>)
torch.randn(<int>, <int>)
torch.tensor(<list>)
torch.cat([<array>, <array>], dim=<digit>)
torch.relu(<array>)
torch.softmax(<array>, dim=-1)
torch.stack(<list>)
F.cross_entropy(<v_array>, <v_array>)
nn.Linear(<int>, <int>)(<v_array>)
<array> @ <array>
<array> @ <v_array>.T
<array> + <array>
<array> * <num>
(<array> - <v_array>.mean()) / <v_array>.std()
<array_base>[:, <position>]
<array_base>[<array> > <float>]
<array_base>.reshape(<int>, -1)
<array_base>.sum(axis=<bit>)
<array_base>.argmax(dim=-1)
<array_base>.to("<device>")
<array_base>.float()
""",
    "array_leaf": """
<v_array>
<v_array>
<v_array>
<v_array>[<v_num>]
<v_array>.T
np.eye(<int>)
torch.ones(<int>)
""",
    "array_base": """
<v_array>
<v_array>
<v_array>
<v_array>[<position>]
<v_array>.float()
torch.randn(<int>, <int>)
np.abs(<array>)
(<array> - <array>)
<v_obj>(<v_array>)
""",
    "frame": """
pd.read_csv("<file>")
pd.DataFrame(<map>)
<frame_base>.groupby("<noun>")["<noun>"].mean()
<frame_base>.groupby("<noun>").agg({"<noun>": "sum"})
<frame_base>.sort_values("<noun>", ascending=False)
<frame_base>.dropna(subset=["<noun>", "<noun>"])
<frame_base>[<v_frame>["<noun>"] > <num>]
<frame_base>[["<noun>", "<noun>"]]
<frame_base>.merge(<v_frame>, on="<noun>_id", how="left")
<frame_base>.fillna(<int>)
<frame_base>.head(<int>)
<frame_base>.rename(columns={"<noun>": "<noun>"})
<frame_base>.loc[<v_frame>["<noun>"] == <text>, "<noun>"]
<frame_base>.iloc[<digit>:<int>]
""",
    "frame_leaf": """
<v_frame>
<v_frame>
<v_frame>
<v_frame>.copy()
pd.read_csv(<v_text>)
""",
    "frame_base": """
<v_frame>
<v_frame>
<v_frame>
pd.read_csv("<file>")
<frame_base>.dropna()
<frame_base>.reset_index(drop=True)
""",
}
CONTAINER_RULES = _COLLECTIONS | _ARRAYS
