"""Adds the special tokens of other files to the protocol buffer of a SentencePiece model."""

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as proto

from palr_jax.errors import UserError
from palr_jax.llm.tokenizers.special_tokens import SpecialTokens, Token

_PIECE = proto.ModelProto.SentencePiece


def with_special_tokens(model: bytes, special: SpecialTokens, name: str) -> bytes:
    """A serialised model with the added tokens and the begin and end tokens.

    Added tokens become pieces: text is never encoded as a special one, and always as the others.
    `name` is used in errors.

    Raises:
        UserError: the bytes are not a model, or the added tokens contradict it.
    """
    try:
        content: proto.ModelProto = proto.ModelProto.FromString(model)
    except DecodeError as error:
        raise UserError(f"{name} is not a SentencePiece model: {error}") from None
    if not content.pieces:
        raise UserError(f"{name} is not a SentencePiece model: it holds no tokens")
    trainer = content.trainer_spec
    texts = [trainer.bos_piece, trainer.eos_piece, trainer.unk_piece]
    texts += [piece.piece for piece in content.pieces]
    if not all(isinstance(text, str) for text in texts):  # otherwise bytes, which are not UTF-8
        raise UserError(f"{name} is not a SentencePiece model: a token is not UTF-8")
    numbers = {piece.piece: number for number, piece in enumerate(content.pieces)}
    for number in sorted(special.added):
        _add(content, numbers, number, special.added[number], name)
    if special.eos is not None:
        content.trainer_spec.eos_piece = special.eos
    if special.bos is not None:
        content.trainer_spec.bos_piece = special.bos
    ends = [special.bos, special.eos] if special.begins else [special.eos]
    for text in ends:
        if text is None:
            continue
        if text not in numbers:
            raise UserError(
                f"{name} lacks the token {text!r} that the files next to it name as the begin or "
                "end token: the files belong to different models"
            )
        content.pieces[numbers[text]].type = _PIECE.CONTROL
    return bytes(content.SerializeToString())


def _add(
    content: proto.ModelProto, numbers: dict[str, int], number: int, token: Token, name: str
) -> None:
    kind = _PIECE.CONTROL if token.special else _PIECE.USER_DEFINED
    text = token.content if token.special else token.content.replace(" ", "▁")
    if not text:
        raise UserError(f"{name}: the added token {number} in the files next to it has no text")
    known = numbers.setdefault(text, number)
    if known != number:
        raise UserError(
            f"{name}: the added token {text!r} has the id {number} in the files next to it and "
            f"{known} in the model: the files belong to different models"
        )
    pieces = content.pieces
    if number < len(pieces):
        if pieces[number].piece != text:
            raise UserError(
                f"{name}: token {number} is {pieces[number].piece!r}, and {text!r} in the files "
                "next to it: the files belong to different models"
            )
        if pieces[number].type in (_PIECE.NORMAL, _PIECE.UNUSED):
            pieces[number].type = kind
        return
    while len(pieces) < number:  # never encoded from text
        pieces.add(piece=f"<unused {len(pieces)}>", score=0.0, type=_PIECE.UNUSED)
    pieces.add(piece=text, score=0.0, type=kind)
