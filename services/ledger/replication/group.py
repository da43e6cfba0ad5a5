"""It is responsible for one member's life in a group: it follows, stands for election, and writes when elected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

from libs.events.connect import connect_nats
from libs.events.subjects import inbox_prefix
from libs.identity.member import Member
from libs.rpc.policies import ServiceBinding
from libs.transparency.merkle import EMPTY_ROOT
from services.ledger.checkpoints.witnessed_floor import witnessed_floors
from services.ledger.config import Config
from services.ledger.growth import Growth
from services.ledger.holding import Term
from services.ledger.intake.introduction import Introduction, until_introduced
from services.ledger.keys import KeySource
from services.ledger.replication.election import Elections
from services.ledger.replication.follower import Follower
from services.ledger.replication.frame_files import FrameFiles
from services.ledger.replication.keyring_copy import KeyringCopyFile
from services.ledger.replication.leading import Elected, Leading, begin_epoch
from services.ledger.replication.others import MemberPeer, OtherMember
from services.ledger.replication.promise import PromiseFile
from services.ledger.replication.reach import Reach
from services.ledger.replication.replica import Replica
from services.ledger.replication.servicer import ReplicationServicer, replication_binding
from services.ledger.replication.settings import Replication
from services.ledger.replication.showing import keep_showing
from services.ledger.replication.signing import Signing
from services.ledger.replication.stepping_down import SteppingDown
from services.ledger.running import Opened, Trust, keep_sound, open_reading, running
from services.ledger.serving.servicer import LedgerServicer, Reading
from services.ledger.storage import segments
from services.ledger.storage.damage import LogRolledBack
from services.ledger.storage.recovery import Floor, read_signed
from services.ledger.storage.store import LogStore


class Group:
    """This member among the members of its log. Made on a running event loop."""

    def __init__(self, config: Config, opened: Opened, thread: ThreadPoolExecutor) -> None:
        """`thread` is the one that writes the log. Raises `LogDamaged`, `LogBroken`."""
        store, own = opened.store, config.member.instance
        self._config = config
        self._opened = opened
        self._thread = thread
        self._own = own
        self._settings = config.replication
        self._clock = asyncio.get_running_loop().time
        self._log_digest = sha256(store.description.document()).digest()
        self._growth = signed_growth(store.directory)
        self._signed_size = self._growth.size
        store.seals_at_stop = False
        promises = PromiseFile(store.directory)
        self._keyring_file = KeyringCopyFile(store.directory)
        self._follower = Follower(
            own,
            promises,
            Replica(store),
            self._keyring_file,
            self._growth,
            thread,
            last_epoch=store.last_epoch,
            patience_seconds=self._settings.election_seconds,
            clock=self._clock,
        )
        self._growth.is_told = self._follower.allegiance.hears
        self._servicer = ReplicationServicer(self._settings, own, self._log_digest, self._follower)

    @property
    def binding(self) -> ServiceBinding:
        """What is served to the other members."""
        return replication_binding(self._servicer)

    @asynccontextmanager
    async def running(
        self, member: Member, servicer: LedgerServicer, introduction: Introduction, trust: Trust, keys: KeySource
    ) -> AsyncIterator[Reading]:
        """Take part while the body runs; yields what can be read here. Raises what must end this process:
        `LogDiverged`, `WriterDeposed`, `WriterCutOff`, and what the log's own state refuses.
        """
        others = others_of(self._settings, self._own, lambda at: member.peer("ledger", at), self._log_digest)
        elections = Elections(self._settings, self._follower, others, self._clock)
        # Before any key is there: a majority may need this member, and the KMS a writer to release one.
        async with _informing(elections):
            reading = await open_reading(self._config, self._opened, keys, self._growth)
            servicer.follow(reading, lambda: self._follower.allegiance.writer)
            signing = self._signing(reading)
            self._servicer.signs(signing)
            async with self._looking_around(member) as reach, asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self._follower.allegiance.until_ended()),
                    tasks.create_task(keep_sound(self._config, self._opened)),
                    tasks.create_task(self._introduce(introduction, signing)),
                    tasks.create_task(
                        self._write_when_elected(
                            elections, member, servicer, introduction, trust, keys, reading, signing, reach
                        )
                    ),
                ]
                yield reading
                for task in background:
                    task.cancel()

    @asynccontextmanager
    async def _looking_around(self, member: Member) -> AsyncIterator[Reach]:
        """Be ready to say what this member reaches while the body runs."""
        config, asked = self._config, self._opened.asked
        async with connect_nats(
            config.events.nats_url,
            member.broker(config.events.broker),
            server_name=f"broker.{member.trust_domain}",
            name=f"{member.role}/{member.instance}/reach",
            inbox_prefix=inbox_prefix(member.role),
        ) as link:
            origin = self._opened.store.description.origin
            reach = Reach(asked, origin, member.kms, link, config.events.log_number)
            self._servicer.looks(reach)
            yield reach

    async def _introduce(self, introduction: Introduction, signing: Signing) -> None:
        """Let nothing be signed that a reader of this member's files could not prove: first they say whose keys these
        are.
        """
        store = self._opened.store
        await until_introduced(introduction.publisher.issuer, store.index, self._growth)
        store.seals_at_stop = True
        signing.begin()

    def _signing(self, reading: Reading) -> Signing:
        store, asked = self._opened.store, self._opened.asked
        return Signing(
            store.description.origin,
            self._signed_size,
            asked,
            store.index,
            self._growth,
            reading.proofs,
            reading.checkpoints,
            self._follower.allegiance.end,
        )

    async def _write_when_elected(
        self,
        elections: Elections,
        member: Member,
        servicer: LedgerServicer,
        introduction: Introduction,
        trust: Trust,
        keys: KeySource,
        reading: Reading,
        signing: Signing,
        reach: Reach,
    ) -> None:
        elected, others = await elections.until_elected(), elections.others
        leading = await self._lead(elected, others)
        term = Term(elected.epoch, leading)
        stepping_down = SteppingDown(self._settings, reach, others)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(leading.run())
            tasks.create_task(stepping_down.keep())
            await self._require_witnessed()
            await leading.until_begun()
            tasks.create_task(signing.write())
            for other in others:
                tasks.create_task(keep_showing(reading.checkpoints, other, self._settings.heartbeat_seconds))
            async with running(
                member, introduction, self._config, self._opened, trust, keys, reading, term, self._thread
            ) as ledger:
                servicer.begin(ledger)
                self._servicer.writes(leading)
                stepping_down.has_begun = True
                await asyncio.Event().wait()

    async def _require_witnessed(self) -> None:
        """Wait for the witnesses, and raise `LogRolledBack` where one cosigned a tree that this log does not hold."""
        store, asked = self._opened.store, self._opened.asked
        floors = await witnessed_floors(asked.witnesses, asked.quorum, store.description.origin, _say_nothing)
        require_witnessed(store, floors)

    async def _lead(self, elected: Elected, others: Sequence[OtherMember]) -> Leading:
        store, files = self._opened.store, FrameFiles(self._opened.store)
        first = await asyncio.get_running_loop().run_in_executor(self._thread, begin_epoch, store, files, elected.epoch)
        return Leading(
            self._own,
            self._settings,
            elected,
            first,
            follower=self._follower,
            others=others,
            files=files,
            keyring_file=self._keyring_file,
            growth=self._growth,
            clock=self._clock,
        )


def others_of(
    settings: Replication, own: str, peer_at: Callable[[str], MemberPeer], log_digest: bytes
) -> list[OtherMember]:
    """Return the other members, each as the peer at its address."""
    return [
        OtherMember(each.instance, peer_at(each.address), log_digest, settings.election_seconds)
        for each in settings.others(own)
    ]


def require_witnessed(store: LogStore, floors: Iterable[Floor]) -> None:
    """Raise `LogRolledBack` where a witness cosigned a tree that a writer does not hold: nobody else does either."""
    for floor in floors:
        if store.head.size < floor.size or store.index.tree.root(floor.size) != floor.root:
            segment, offset = store.end
            why = f"no majority holds the tree of {floor.size} leaves that {floor.source} cosigned"
            raise LogRolledBack(segments.file_name(segment), offset, why)


@asynccontextmanager
async def _informing(elections: Elections) -> AsyncIterator[None]:
    """Learn from the others what may be forgotten here while the body runs."""
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(elections.until_informed())
        yield
        asking.cancel()


async def _say_nothing() -> None:
    """The log was verified when it was opened."""


def signed_growth(directory: Path) -> Growth:
    """Return the largest size that was signed here: a majority held it then."""
    newest = read_signed(directory).newest
    size, root = (0, EMPTY_ROOT) if newest is None else (newest.size, newest.root)
    return Growth(size, root, is_all=lambda: False)
