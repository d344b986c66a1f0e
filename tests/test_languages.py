"""Languages are told apart: known ones from each other, and from languages that are not known.

The texts are from the Universal Declaration of Human Rights.
"""

import pytest

from saescope.control.evaluation.languages import CODE, KNOWN_LANGUAGES, detect_language
from saescope.judges import LanguageJudge

KNOWN = {
    "en": ("All human beings are born free and equal in dignity and rights.",
           "Everyone has the right to a nationality."),
    "de": ("Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
           "Jeder hat das Recht auf eine Staatsangehörigkeit."),
    "fr": ("Tous les êtres humains naissent libres et égaux en dignité et en droits.",
           "Tout individu a droit à une nationalité."),
    "es": ("Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
           "Toda persona tiene derecho a una nacionalidad."),
    "pt": ("Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
           "Todo o indivíduo tem direito a ter uma nacionalidade."),
    "it": ("Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.",
           "Ogni individuo ha diritto ad una cittadinanza."),
    "eu": ("Gizon-emakume guztiak aske jaiotzen dira, duintasun eta eskubide berberak dituztela.",
           "Pertsona orok du herritartasuna izateko eskubidea."),
    "eo": ("Ĉiuj homoj estas denaske liberaj kaj egalaj laŭ digno kaj rajtoj.",
           "Ĉiu rajtas havi ŝtatanecon."),
    "ru": ("Все люди рождаются свободными и равными в своем достоинстве и правах.",
           "Каждый человек имеет право на гражданство."),
    "ar": ("يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
           "لكل فرد حق التمتع بجنسية ما."),
    "hi": ("सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है ।",
           "किसी को भी मनमाने ढंग से अपनी सम्मति से वंचित न किया जाएगा ।"),
    "ja": ("すべての人間は、生まれながらにして自由である。",
           "すべて人は、国籍をもつ権利を有する。"),
    "ko": ("모든 인간은 태어날 때부터 자유롭다.", "모든 사람은 국적을 가질 권리를 가진다."),
    "zh": ("人人生而自由,在尊严和权利上一律平等。", "任何人的财产不得任意剥夺。"),
}  # fmt: skip
OTHERS = {
    "nl": "Een ieder heeft het recht op een nationaliteit.",
    "pl": "Każdy człowiek ma prawo do posiadania obywatelstwa.",
    "tr": "Her ferdin bir uyrukluk hakkı vardır.",
    "vi": "Không ai bị bắt buộc phải tham gia một hiệp hội nào.",
    "uk": "Кожна людина має право на громадянство.",
    "fa": "هر کس حق دارد که دارای تابعیت باشد.",
}


@pytest.mark.parametrize("code", KNOWN)
def test_known_languages_are_recognised(code: str) -> None:
    assert [detect_language(text) for text in KNOWN[code]] == [code, code]


def test_every_known_language_has_a_test() -> None:
    assert {*KNOWN, CODE} == set(KNOWN_LANGUAGES)


@pytest.mark.parametrize("code", OTHERS)
def test_other_languages_are_not_taken_for_known_ones(code: str) -> None:
    assert detect_language(OTHERS[code]) == code
    judges = [LanguageJudge(known) for known in KNOWN_LANGUAGES]
    assert [judge.label(OTHERS[code]) for judge in judges] == [None] * len(judges)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def area(r):\n    return 3 * r", CODE),
        ("for (i = 0; i < n; i++) { sum += x[i]; }", CODE),
        ("console.log(total);", CODE),
        ("Coloca o centro da(s) ponta(s) de seta(s) no final da linha.", "pt"),
        ("Kontrolu la dosieron (eĉ la novan).", "eo"),
        ("Version 5.0 is the current one;", "en"),
    ],
)
def test_code_is_told_from_prose_with_its_signs(text: str, code: str) -> None:
    assert detect_language(text) == code
