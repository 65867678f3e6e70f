-- Hydra's tables at schema version 87, for a new and empty database.
-- Caller: db/schema.rs (`hydrad init`), in one transaction that starts with an advisory lock.
-- Rows touched: the seeds of NrBuilds and SchemaVersion. Locks: those of creation. Index used: none.
--
-- Programs find tables by name and columns by name, never by position. All times are Unix seconds.

create table SchemaVersion (
    version integer not null
);

-- People and what they may do.

create table Users (
    userName        text primary key not null,
    fullName        text,
    emailAddress    text not null,
    password        text not null,                      -- argon2id, sha1 (old), or ! for none
    emailOnError    integer not null default 0,
    type            text not null default 'hydra',      -- hydra, google, github
    publicDashboard boolean not null default false
);

create table UserRoles (
    userName text not null references Users (userName) on delete cascade on update cascade,
    role     text not null,
    primary key (userName, role)
);

-- Projects and jobsets.

create table Projects (
    name        text primary key not null,
    displayName text not null,
    description text,
    enabled     integer not null default 1,
    hidden      integer not null default 0,
    owner       text not null references Users (userName) on update cascade,
    homepage    text,
    declfile    text,
    decltype    text,
    declvalue   text,
    enable_dynamic_run_command boolean not null default false
);

create table ProjectMembers (
    project  text not null references Projects (name) on delete cascade on update cascade,
    userName text not null references Users (userName) on delete cascade on update cascade,
    primary key (project, userName)
);

create table Jobsets (
    name             text not null,
    id               serial not null,
    project          text not null references Projects (name) on delete cascade on update cascade,
    description      text,
    nixExprInput     text,
    nixExprPath      text,
    errorMsg         text,
    errorTime        integer,
    lastCheckedTime  integer,
    triggerTime      integer,                           -- evaluate soon; null: nothing asked for
    enabled          integer not null default 1,        -- 0 no, 1 yes, 2 one-shot, 3 one at a time
    enableEmail      integer not null default 1,
    hidden           integer not null default 0,
    emailOverride    text not null,
    keepnr           integer not null default 3,
    checkInterval    integer not null default 300,
    schedulingShares integer not null default 100,
    fetchErrorMsg    text,
    forceEval        boolean,
    startTime        integer,                           -- of the evaluation in progress
    type             integer not null default 0,        -- 0 expression, 1 flake
    flake            text,
    enable_dynamic_run_command boolean not null default false,
    primary key (project, name),
    constraint Jobsets_id_unique unique (id),
    constraint Jobsets_shares_positive check (schedulingShares > 0),
    constraint Jobsets_type_known check (type in (0, 1)),
    constraint Jobsets_type_expression check
        ((type = 0) = (nixExprInput is not null and nixExprPath is not null and flake is null)),
    constraint Jobsets_type_flake check
        ((type = 1) = (nixExprInput is null and nixExprPath is null and flake is not null))
);

create table JobsetRenames (
    project text not null,
    from_   text not null,
    to_     text not null,
    primary key (project, from_),
    foreign key (project, to_) references Jobsets (project, name)
        on delete cascade on update cascade
);

create table JobsetInputs (
    project          text not null,
    jobset           text not null,
    name             text not null,
    type             text not null,
    emailResponsible integer not null default 0,
    primary key (project, jobset, name),
    foreign key (project, jobset) references Jobsets (project, name)
        on delete cascade on update cascade
);

create table JobsetInputAlts (
    project  text not null,
    jobset   text not null,
    input    text not null,
    altnr    integer not null,
    value    text,
    revision text,
    primary key (project, jobset, input, altnr),
    foreign key (project, jobset, input) references JobsetInputs (project, jobset, name)
        on delete cascade on update cascade
);

-- Builds and the steps taken for them.

create table Builds (
    id             serial primary key not null,
    finished       integer not null,                    -- 0 queued or running, 1 done
    timestamp      integer not null,
    jobset_id      integer not null references Jobsets (id) on delete cascade,
    job            text not null,
    nixName        text,
    description    text,
    drvPath        text not null,
    system         text not null,
    license        text,
    homepage       text,
    maintainers    text,
    maxsilent      integer default 3600,
    timeout        integer default 36000,
    isChannel      integer not null default 0,
    isCurrent      integer default 0,
    priority       integer not null default 0,
    globalPriority integer not null default 0,
    startTime      integer,
    stopTime       integer,
    isCachedBuild  integer,
    buildStatus    integer,
    size           bigint,
    closureSize    bigint,
    releaseName    text,
    keep           integer not null default 0,
    notificationPendingSince integer,
    check (finished = 0 or (stopTime is not null and stopTime != 0)),
    check (finished = 0 or (startTime is not null and startTime != 0))
);

create table BuildOutputs (
    build integer not null references Builds (id) on delete cascade,
    name  text not null,
    path  text,                                         -- null: not known before it is built
    primary key (build, name)
);

create table BuildSteps (
    build              integer not null references Builds (id) on delete cascade,
    stepnr             integer not null,
    type               integer not null,                -- 0 build, 1 substitution
    drvPath            text not null,
    busy               integer not null,                -- 0 idle, else the phase
    status             integer,
    errorMsg           text,
    startTime          integer,
    stopTime           integer,
    machine            text not null default '',
    system             text,
    propagatedFrom     integer references Builds (id) on delete cascade,
    overhead           integer,                         -- ms
    timesBuilt         integer,
    isNonDeterministic boolean,
    resolvedDrvPath    text,                            -- base name; only with status 13
    primary key (build, stepnr),
    constraint buildsteps_resolved_consistent check ((status = 13) = (resolvedDrvPath is not null))
);

create table BuildStepOutputs (
    build  integer not null references Builds (id) on delete cascade,
    stepnr integer not null,
    name   text not null,
    path   text,
    primary key (build, stepnr, name),
    foreign key (build, stepnr) references BuildSteps (build, stepnr) on delete cascade
);

create table BuildInputs (
    id               serial primary key not null,
    build            integer references Builds (id) on delete cascade,
    name             text not null,
    type             text not null,
    uri              text,
    revision         text,
    value            text,
    emailResponsible integer not null default 0,
    dependency       integer references Builds (id),
    path             text,
    sha256hash       text
);

create table BuildProducts (
    build       integer not null references Builds (id) on delete cascade,
    productnr   integer not null,
    type        text not null,
    subtype     text not null,
    fileSize    bigint,
    sha256hash  text,
    path        text,
    name        text not null,
    defaultPath text,
    primary key (build, productnr)
);

create table BuildMetrics (
    build     integer not null references Builds (id) on delete cascade,
    name      text not null,
    unit      text,
    value     double precision not null,
    project   text not null references Projects (name) on update cascade,
    jobset    text not null,
    job       text not null,
    timestamp integer not null,
    primary key (build, name),
    foreign key (project, jobset) references Jobsets (project, name) on update cascade
);

create table AggregateConstituents (
    aggregate   integer not null references Builds (id) on delete cascade,
    constituent integer not null references Builds (id) on delete cascade,
    primary key (aggregate, constituent)
);

create table FailedPaths (
    path text primary key not null
);

create rule IdempotentInsert as on insert to FailedPaths
    where exists (select 1 from FailedPaths f where f.path = new.path)
    do instead nothing;

-- What was fetched before.

create table CachedPathInputs (
    srcPath    text not null,
    timestamp  integer not null,                        -- first seen
    lastSeen   integer not null,
    sha256hash text not null,
    storePath  text not null,
    primary key (srcPath, sha256hash)
);

create table CachedSubversionInputs (
    uri        text not null,
    revision   integer not null,
    sha256hash text not null,
    storePath  text not null,
    primary key (uri, revision)
);

create table CachedBazaarInputs (
    uri        text not null,
    revision   integer not null,
    sha256hash text not null,
    storePath  text not null,
    primary key (uri, revision)
);

create table CachedGitInputs (
    uri         text not null,
    branch      text not null,
    revision    text not null,
    isDeepClone boolean not null,
    sha256hash  text not null,
    storePath   text not null,
    primary key (uri, branch, revision, isDeepClone)
);

create table CachedDarcsInputs (
    uri        text not null,
    revision   text not null,
    sha256hash text not null,
    storePath  text not null,
    revCount   integer not null,
    primary key (uri, revision)
);

create table CachedHgInputs (
    uri        text not null,
    branch     text not null,
    revision   text not null,
    sha256hash text not null,
    storePath  text not null,
    primary key (uri, branch, revision)
);

create table CachedCVSInputs (
    uri        text not null,
    module     text not null,
    timestamp  integer not null,
    lastSeen   integer not null,
    sha256hash text not null,
    storePath  text not null,
    primary key (uri, module, sha256hash)
);

-- Evaluations.

create table EvaluationErrors (
    id        serial primary key not null,
    errorMsg  text,
    errorTime integer
);

create table JobsetEvals (
    id                 serial primary key not null,
    jobset_id          integer not null references Jobsets (id) on delete cascade,
    evaluationerror_id integer references EvaluationErrors (id) on delete set null,
    timestamp          integer not null,
    checkoutTime       integer not null,                -- s
    evalTime           integer not null,                -- s
    hasNewBuilds       integer not null,
    hash               text not null,
    nrBuilds           integer,
    nrSucceeded        integer,
    flake              text,
    nixExprInput       text,
    nixExprPath        text
);

create table JobsetEvalInputs (
    eval           integer not null references JobsetEvals (id) on delete cascade,
    name           text not null,
    altNr          integer not null,
    type           text not null,
    uri            text,
    revision       text,
    shortRevLength smallint,
    value          text,
    dependency     integer references Builds (id),
    path           text,
    sha256hash     text,
    primary key (eval, name, altNr)
);

create table JobsetEvalMembers (
    eval  integer not null references JobsetEvals (id) on delete cascade,
    build integer not null references Builds (id) on delete cascade,
    isNew integer not null,
    primary key (eval, build)
);

-- Of the web server and the notifier.

create table UriRevMapper (
    baseuri text primary key not null,
    uri     text not null
);

create table NewsItems (
    id         serial primary key not null,
    contents   text not null,
    createTime integer not null,
    author     text not null references Users (userName) on delete cascade on update cascade
);

create table StarredJobs (
    userName text not null references Users (userName) on delete cascade on update cascade,
    project  text not null references Projects (name) on delete cascade on update cascade,
    jobset   text not null,
    job      text not null,
    primary key (userName, project, jobset, job),
    foreign key (project, jobset) references Jobsets (project, name)
        on delete cascade on update cascade
);

create table TaskRetries (
    id         serial primary key not null,
    channel    text not null,
    pluginname text not null,
    payload    text not null,
    attempts   integer not null,
    retry_at   integer not null
);

create table RunCommandLogs (
    id           serial primary key not null,
    uuid         uuid not null,
    job_matcher  text not null,
    build_id     integer not null references Builds (id) on delete cascade,
    command      text not null,
    start_time   integer,
    end_time     integer,
    error_number integer,
    exit_code    integer,
    signal       integer,
    core_dumped  boolean,
    constraint RunCommandLogs_uuid_unique unique (uuid),
    constraint RunCommandLogs_result_needs_start check
        (start_time is not null
         or (end_time is null and error_number is null and exit_code is null
             and signal is null and core_dumped is null)),
    constraint RunCommandLogs_end_needs_start check (end_time is null or start_time is not null)
);

create table SystemStatus (
    what   text primary key not null,
    status json not null
);

create table NrBuilds (
    what  text primary key not null,
    count integer not null
);

-- Indexes.

create index IndexBuildInputsOnBuild on BuildInputs (build);
create index IndexBuildInputsOnDependency on BuildInputs (dependency);
create index IndexBuildMetricsOnJobTimestamp on BuildMetrics (project, jobset, job, timestamp desc);
create index IndexBuildProducstOnBuildAndType on BuildProducts (build, type);
create index IndexBuildProductsOnBuild on BuildProducts (build);

create index IndexBuildStepsOnBusy on BuildSteps (busy) where busy != 0;
create index IndexBuildStepsOnDrvPath on BuildSteps (drvPath);
create index IndexBuildStepsOnPropagatedFrom on BuildSteps (propagatedFrom)
    where propagatedFrom is not null;
create index IndexBuildStepsOnStopTime on BuildSteps (stopTime desc)
    where startTime is not null and stopTime is not null;
create index IndexBuildStepOutputsOnPath on BuildStepOutputs (path);
create index IndexBuildOutputsPath on BuildOutputs using hash (path);

create index IndexBuildsOnFinished on Builds (finished) where finished = 0;
create index IndexBuildsOnIsCurrent on Builds (isCurrent) where isCurrent = 1;
create index IndexBuildsJobsetIdCurrent on Builds (jobset_id) where isCurrent = 1;
create index IndexBuildsJobsetIdCurrentUnfinished on Builds (jobset_id)
    where isCurrent = 1 and finished = 0;
create index IndexBuildsJobsetIdCurrentFinishedStatus on Builds (jobset_id, buildStatus)
    where isCurrent = 1 and finished = 1;
create index IndexBuildsOnTimestamp on Builds (timestamp);
create index IndexBuildsOnFinishedStopTime on Builds (finished, stopTime desc);
create index IndexBuildsOnJobsetIdFinishedId on Builds (jobset_id, job, finished, id desc);
create index IndexFinishedSuccessfulBuilds on Builds (jobset_id, job, finished, buildStatus, id desc)
    where buildStatus = 0 and finished = 1;
create index IndexBuildsOnDrvPath on Builds (drvPath);
create index IndexBuildsOnKeep on Builds (keep) where keep = 1;
create index IndexBuildsOnNotificationPendingSince on Builds (notificationPendingSince)
    where notificationPendingSince is not null;

create index IndexCachedHgInputsOnHash on CachedHgInputs (uri, branch, sha256hash);
create index IndexCachedGitInputsOnHash on CachedGitInputs (uri, branch, sha256hash);
create index IndexCachedSubversionInputsOnUriRevision on CachedSubversionInputs (uri, revision);
create index IndexCachedBazaarInputsOnUriRevision on CachedBazaarInputs (uri, revision);

create index IndexJobsetEvalMembersOnBuild on JobsetEvalMembers (build);
create index IndexJobsetEvalMembersOnEval on JobsetEvalMembers (eval);
create index IndexJobsetInputAltsOnInput on JobsetInputAlts (project, jobset, input);
create index IndexJobsetInputAltsOnJobset on JobsetInputAlts (project, jobset);
create index IndexProjectsOnEnabled on Projects (enabled);
create index IndexJobsetEvalsOnJobsetId on JobsetEvals (jobset_id, id desc) where hasNewBuilds = 1;
create index IndexJobsetIdEvals on JobsetEvals (jobset_id) where hasNewBuilds = 1;
create index IndexTaskRetriesOrdered on TaskRetries (retry_at asc);
create index IndexRunCommandLogsOnBuildID on RunCommandLogs (build_id);

-- Searching derivations by a part of their name needs an extension that may be out of reach.
do $$
begin
    create extension if not exists pg_trgm;
    create index IndexTrgmBuildsOnDrvpath on Builds using gin (drvPath gin_trgm_ops);
exception when others then
    raise warning 'no trigram index on Builds.drvPath, searching will be slow: %', sqlerrm;
end
$$;

-- Announcements the database makes by itself; all without a payload.

create function notifyJobsetsAdded() returns trigger language plpgsql as $$
begin
    notify jobsets_added;
    return null;
end
$$;

create trigger JobsetsAdded after insert on Jobsets
    for each statement execute function notifyJobsetsAdded();

create function notifyJobsetsDeleted() returns trigger language plpgsql as $$
begin
    notify jobsets_deleted;
    return null;
end
$$;

create trigger JobsetsDeleted after delete on Jobsets
    for each statement execute function notifyJobsetsDeleted();

create function notifyJobsetSchedulingChanged() returns trigger language plpgsql as $$
begin
    notify jobset_scheduling_changed;
    return null;
end
$$;

create trigger JobsetSchedulingChanged after update on Jobsets
    for each row
    when ((new.triggerTime is not null and old.triggerTime is distinct from new.triggerTime)
          or old.checkInterval is distinct from new.checkInterval
          or old.enabled is distinct from new.enabled)
    execute function notifyJobsetSchedulingChanged();

create function notifyJobsetSharesChanged() returns trigger language plpgsql as $$
begin
    notify jobset_shares_changed;
    return null;
end
$$;

create trigger JobsetSharesChanged after update on Jobsets
    for each row when (old.schedulingShares is distinct from new.schedulingShares)
    execute function notifyJobsetSharesChanged();

create function notifyBuildsDeleted() returns trigger language plpgsql as $$
begin
    notify builds_deleted;
    return null;
end
$$;

create trigger BuildsDeleted after delete on Builds
    for each statement execute function notifyBuildsDeleted();

create function notifyBuildRestarted() returns trigger language plpgsql as $$
begin
    notify builds_restarted;
    return null;
end
$$;

create trigger BuildRestarted after update on Builds
    for each row when (old.finished = 1 and new.finished = 0)
    execute function notifyBuildRestarted();

create function notifyBuildCancelled() returns trigger language plpgsql as $$
begin
    notify builds_cancelled;
    return null;
end
$$;

create trigger BuildCancelled after update on Builds
    for each row when (old.finished = 0 and new.finished = 1 and new.buildStatus = 4)
    execute function notifyBuildCancelled();

create function notifyBuildBumped() returns trigger language plpgsql as $$
begin
    notify builds_bumped;
    return null;
end
$$;

create trigger BuildBumped after update on Builds
    for each row when (old.globalPriority is distinct from new.globalPriority)
    execute function notifyBuildBumped();

-- How many builds are finished, since counting them takes long.

create function modifyNrBuildsFinished() returns trigger language plpgsql as $$
declare
    difference integer := 0;
begin
    if tg_op in ('UPDATE', 'DELETE') and old.finished = 1 then
        difference := difference - 1;
    end if;
    if tg_op in ('INSERT', 'UPDATE') and new.finished = 1 then
        difference := difference + 1;
    end if;
    if difference <> 0 then
        update NrBuilds set count = count + difference where what = 'finished';
    end if;
    return null;
end
$$;

create trigger NrBuildsFinished after insert or update or delete on Builds
    for each row execute function modifyNrBuildsFinished();

insert into NrBuilds (what, count) values ('finished', 0);
insert into SchemaVersion (version) values (87);
