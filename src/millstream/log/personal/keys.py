"""The keys of a log: where they are kept, and what is sealed and unsealed with them."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Iterable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ...errors import InvalidEvent, KeysNeeded, MissingExtra, ReadOnlyLog, SubjectForgotten, UsageError
from ...events import sealed_fields
from ...storage.base import Scope
from ...storage.forked import lock
from ..staging import PRIVACY, check_label
from .keyfile import KEY_BYTES, KeyFile

if TYPE_CHECKING:
    from ...storage.contract import Store
    from ..reading import Reader

SIDE = "-keys"
"""What is added to the path of a log's file for that of its keys."""
SNAPSHOT = "snapshot:"
"""How the names begin under which snapshots of streams are sealed."""
_KEPT = 100_000


def check_subject(subject: object) -> str:
    """Whose data something is, if they can be called so.

    Raises:
        InvalidEvent: It is no short printable text, or is a name of the library's own.
    """
    name = check_label(subject, "subject")
    if name.startswith(SNAPSHOT):
        raise InvalidEvent(
            f"{name!r:.80} is not a subject: keys of snapshots have such names", hint="Let ids begin otherwise"
        )
    return name


def sealed_types(store: Store) -> frozenset[str]:
    """The types, as they are stored, of which a log holds sealed events."""
    kinds = map(store.kind, store.kinds(Scope()))
    return frozenset(kind.type for kind in kinds if sealed_fields(kind.schema))


@runtime_checkable
class KeyStore(Protocol):
    """Where keys are kept, for `millstream.open`: a service for keys, for example. Called from any thread.

    A key is 32 random bytes. Subjects are what events say of whose data they hold; names that begin with
    ``snapshot:`` are the library's own.

    It may have ``generation``, a number that changes whenever a key was destroyed by anyone. Without it, no key is
    trusted for longer than it takes to read a page of events.

    Example:
        >>> import secrets
        >>> import millstream as ms
        >>> class Keys:
        ...     def __init__(self): self.keys, self.gone = {}, set()
        ...     def get(self, subject): return self.keys.get(subject)
        ...     def create(self, subject):
        ...         if subject in self.gone: raise ms.SubjectForgotten(subject)
        ...         return self.keys.setdefault(subject, secrets.token_bytes(32))
        ...     def forget(self, subject):
        ...         self.gone.add(subject)
        ...         return self.keys.pop(subject, None) is not None
        ...     def forgotten(self, subject): return subject in self.gone
        ...     def discard(self, name): self.keys.pop(name, None)
        >>> isinstance(Keys(), ms.KeyStore)
        True
        >>> log = ms.open(keys=Keys())
    """

    def get(self, subject: str) -> bytes | None:
        """The key of a subject; None when there is none, or none any more."""

    def create(self, subject: str) -> bytes:
        """The key of a subject, made if there is none, and durable when this returns.

        Raises:
            SubjectForgotten: They were forgotten.
        """
        ...

    def forget(self, subject: str) -> bool:
        """Destroy the key of a subject for good, and remember that. Whether there was one. Durable when it returns."""
        ...

    def forgotten(self, subject: str) -> bool:
        """Whether they were forgotten."""
        ...

    def discard(self, name: str) -> None:
        """Destroy a key, so that another can be made under its name."""


class MemoryKeys:
    """Keys that are gone when the process ends, for a log that is."""

    def __init__(self) -> None:
        self._mutex = lock()
        self._keys: dict[str, bytes] = {}
        self._forgotten: set[str] = set()
        self.generation = 0

    def get(self, subject: str) -> bytes | None:
        return self._keys.get(subject)

    def create(self, subject: str) -> bytes:
        with self._mutex:
            if subject in self._forgotten:
                raise SubjectForgotten(subject)
            return self._keys.setdefault(subject, secrets.token_bytes(KEY_BYTES))

    def forget(self, subject: str) -> bool:
        with self._mutex:
            self._forgotten.add(subject)
            self.generation += 1
            return self._keys.pop(subject, None) is not None

    def forgotten(self, subject: str) -> bool:
        return subject in self._forgotten

    def discard(self, name: str) -> None:
        with self._mutex:
            self.generation += 1
            self._keys.pop(name, None)


class Unfit(Exception):
    """What was sealed with another key, or changed since."""


class Cipher:
    """Seals with one key.

    The nonce is the beginning of an HMAC of the text and what it belongs to, by another key than that of the cipher:
    the same append, repeated by its id, has the same body, and no nonce meets two texts. What this gives away: that
    two sealed texts of one subject are equal.
    """

    def __init__(self, key: bytes) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise MissingExtra("personal", "cryptography") from error
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise UsageError("a key store gave a key that is no key", hint=f"Let each be {KEY_BYTES} random bytes")
        self._aes = AESGCM(hmac.digest(key, b"millstream seal", sha256))
        self._nonces = hmac.digest(key, b"millstream nonce", sha256)
        self._invalid = InvalidTag

    def seal(self, text: bytes, about: bytes) -> bytes:
        """Nonce, encrypted text and tag.

        Args:
            about: What the text belongs to; needed to unseal it.
        """
        nonce = hmac.digest(self._nonces, len(about).to_bytes(4, "big") + about + text, sha256)[:12]
        return nonce + self._aes.encrypt(nonce, text, about)

    def unseal(self, sealed: bytes, about: bytes) -> bytes:
        """The text.

        Raises:
            Unfit: It was sealed with another key, or changed.
        """
        try:
            return self._aes.decrypt(sealed[:12], sealed[12:], about)
        except (self._invalid, ValueError) as error:
            raise Unfit from error


class Keys:
    """The keys of a log, by whose names events and snapshots are sealed; ``log.keys``.

    Args:
        given: A path or a `KeyStore`; None for the place that goes with the log: beside its file, or in memory.
    """

    def __init__(self, reader: Reader, given: Any = None) -> None:
        self._reader = reader
        self._store = reader.store
        self._kept: dict[str, Cipher | None] = {}
        self._seen: Any = None
        self._told: set[str] = set()
        self._told_until = 0
        self._asked = False
        """Whether the log was asked who was forgotten, since keys were last trusted."""
        self._mutex = lock()
        self._own = 0
        self.place: KeyStore | None = self._placed(given)
        """Where they are kept; None: nowhere."""

    def _placed(self, given: Any) -> KeyStore | None:
        if given is None:
            if self._store.is_file:
                return KeyFile((self._store.address or self._store.location) + SIDE, readonly=self._store.readonly)
            return None if self._store.location else MemoryKeys()
        if isinstance(given, str | os.PathLike):
            path = os.fsdecode(given)
            if not path or "://" in path:
                raise UsageError(f"keys={path!r:.60} is no path", hint="Give the path of a file of keys, or a KeyStore")
            return KeyFile(path, readonly=self._store.readonly)
        if isinstance(given, KeyStore):
            return given
        raise UsageError(
            f"keys={given!r:.60} keeps no keys", hint="Give a path, or an object with a KeyStore's methods"
        )

    def __repr__(self) -> str:
        return f"<keys in {self.place!r}>" if self.place is not None else "<no keys>"

    @property
    def generation(self) -> Any:
        """What changes whenever a key was destroyed, here or by another process. To be compared, and nothing else."""
        found = getattr(self.place, "generation", None)
        if found is None and self.place is not None:
            # Who forgets a subject says so in the log.
            found = self._own, self._privacy_version()
        return found

    def refresh(self) -> None:
        """Trust no key that was destroyed since. Called before something is sealed, and for each page of a read."""
        now = getattr(self.place, "generation", None)
        if now is None or now != self._seen:
            self._kept = {}
            self._seen = now
        self._asked = False

    def ciphers(self, subjects: Iterable[str]) -> dict[str, Cipher]:
        """What to seal the data of subjects with; their keys are made if need be, and durable when this returns.

        Raises:
            SubjectForgotten: One of them was forgotten.
            KeysNeeded: There is no place for keys.
        """
        self.refresh()
        place = self._needed()
        known = self._kept
        found = {subject: cipher for subject in subjects if (cipher := known.get(subject)) is not None}
        missing = [subject for subject in subjects if subject not in found]
        if missing:
            if self._store.readonly:
                raise ReadOnlyLog(self._store.location)
            if told := self._told_of().intersection(missing):
                raise SubjectForgotten(min(told))
            if isinstance(place, KeyFile):
                if not place.exists and self._holds_sealed():
                    # New keys for old subjects would leave no file that opens all of the log.
                    raise KeysNeeded(self._store.location, missing=place.path)
                made = place.create_many(missing)
            else:
                made = {subject: place.create(subject) for subject in missing}
            for subject, key in made.items():
                found[subject] = self._keep(known, subject, Cipher(key))
        return found

    def ciphers_left(self, subjects: Iterable[str]) -> dict[str, Cipher | None]:
        """The same of whatever subjects; None for those who were forgotten.

        Raises:
            KeysNeeded: There is no place for keys.
        """
        self.refresh()
        found: dict[str, Cipher | None] = {}
        missing = list(subjects)
        while missing:
            new = []
            for subject in missing:
                try:
                    found[subject] = self.cipher(subject)
                except LookupError:
                    new.append(subject)
            if not new:
                break
            try:
                found.update(self.ciphers(new))
                break
            except SubjectForgotten:  # this moment
                missing = new
        return found

    def cipher(self, subject: str) -> Cipher | None:
        """What to unseal the data of a subject with; None when they were forgotten.

        Raises:
            KeysNeeded: There is no place for keys.
            LookupError: Their key is not there, though they were not forgotten.
        """
        known = self._kept
        if subject in known:
            return known[subject]
        place = self.place
        if not self._asked:
            self._asked = True
            self._told_of()
        if subject in self._told:
            # Whatever a file of keys says that was put back from before.
            known[subject] = None
            return None
        if place is not None and (key := place.get(subject)) is not None:
            return self._keep(known, subject, Cipher(key))
        if (place is not None and place.forgotten(subject)) or subject in self._told_of():
            known[subject] = None
            return None
        self._needed()
        raise LookupError(subject)

    def seal(self, name: str, data: bytes) -> bytes:
        """Seal bytes of the library's own under a name; its key is made if need be.

        Raises:
            KeysNeeded: There is no place for keys.
        """
        return self.ciphers([name])[name].seal(data, name.encode())

    def unseal(self, name: str, sealed: bytes) -> bytes | None:
        """What was sealed under a name; None when its key is gone or is another one."""
        self.refresh()
        try:
            cipher = self.cipher(name)
            return cipher.unseal(sealed, name.encode()) if cipher is not None else None
        except (LookupError, KeysNeeded, Unfit):
            return None

    def discard(self, name: str) -> None:
        """Destroy the key of something sealed under a name."""
        if self.place is not None:
            self.place.discard(name)
            self._own += 1
            self._kept = {}

    def forget(self, subject: str) -> bool:
        """Destroy the key of a subject for good; see `KeyStore.forget`."""
        destroyed = self._needed().forget(subject)
        self._own += 1
        self._kept = {}
        return destroyed

    def close(self) -> None:
        """Let go of the file, if they are in one."""
        if isinstance(self.place, KeyFile):
            self.place.close()
        self._kept = {}

    def _needed(self) -> KeyStore:
        if self.place is None:
            raise KeysNeeded(self._store.location or "the log")
        return self.place

    def _holds_sealed(self) -> bool:
        """Whether anything in the log was sealed."""
        return bool(sealed_types(self._store))

    def _keep(self, known: dict[str, Cipher | None], subject: str, cipher: Cipher) -> Cipher:
        # Not in what has taken the place of what was looked into: the key may be of before that.
        if len(known) >= _KEPT:
            known.clear()
        known[subject] = cipher
        return cipher

    def _privacy_version(self) -> int:
        found = self._store.stream(PRIVACY)
        return found.version if found is not None else 0

    def _told_of(self) -> set[str]:
        """Who was forgotten, by what the log says: a copy has that, but no keys."""
        from .forget import told_forgotten

        found = self._store.stream(PRIVACY)
        if found is None:
            return self._told
        with self._mutex:
            if found.last_position > self._told_until:
                # Another set rather than a larger one: others may be going through it.
                self._told = self._told.union(told_forgotten(self._reader, self._told_until, found.last_position))
                self._told_until = found.last_position
        return self._told
